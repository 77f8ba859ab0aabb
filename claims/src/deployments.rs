//! Which versions of the pipelines there are, and where each of them starts.

use crate::{Claims, ClaimsError};
use click::{LogId, Offsets};
use redis::Script;

/// A version of the pipelines, and the first offset in every partition that is judged by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    pub version: i64,
    pub log_id: LogId,
    /// Every partition of the log.
    pub positions: Offsets,
}

// ARGV: horizon, version, whether it is the first that ever was, log id, then partition and first offset by turns.
const RECORD: &str = r"
local version, log, start = tonumber(ARGV[2]), ARGV[4], 'claims:start:'..ARGV[2]
local newest = tonumber(redis.call('ZREVRANGE', 'claims:versions', 0, 0)[1])
if redis.call('ZSCORE', 'claims:versions', ARGV[2]) then
  for i = 5, #ARGV, 2 do
    local held = redis.call('HGET', start, log..':'..ARGV[i])
    if held ~= ARGV[i + 1] then
      return 'version '..ARGV[2]..' starts at offset '..(held or 'none')..' of log '..log..' partition '..ARGV[i]
        ..', and '..ARGV[i + 1]..' is given: a version starts once'
    end
  end
  return ''
elseif newest and version < newest then
  return 'version '..ARGV[2]..' is given, and version '..text(newest)..' is deployed: an older version is refused'
end
for i = 5, #ARGV, 2 do
  local place, offset = log..':'..ARGV[i], tonumber(ARGV[i + 1])
  local held = tonumber(string.match(redis.call('HGET', 'claims:through', place) or '', '^%-?%d+'))
  if not held then held = ARGV[3] == '1' and not newest and offset - 1 or -1 end
  -- No append time: nothing is dropped before the new version has asked in every partition.
  redis.call('HSET', 'claims:through', place, text(math.min(held, offset - 1))..':0')
  redis.call('HSET', start, place, ARGV[i + 1])
end
redis.call('ZADD', 'claims:versions', version, ARGV[2])
redis.call('SET', 'claims:horizon_ms', ARGV[1])
return ''
";

impl Claims {
    /// Tells Redis of `deployments`: all of them that the warehouse knows, oldest first. From then on the last is the
    /// one whose records are answered; older versions are refused, and their claims from its start on are void, so they
    /// count as not made. Claims before the first deployment are not missed, since nothing was counted there.
    ///
    /// It is to be called after the older version was stopped and before the new one starts. What is known is not
    /// changed, so calling again, or after Redis lost some of it, is safe. `horizon_ms` is the dedup horizon of the last.
    ///
    /// # Errors
    /// If Redis does not answer, knows a newer version, or another start of one of these.
    pub async fn record(&mut self, deployments: &[Deployment], horizon_ms: i64) -> Result<(), ClaimsError> {
        if deployments.is_empty() {
            return Err(ClaimsError::NoDeployment);
        }
        if horizon_ms <= 0 {
            return Err(ClaimsError::Deployment(format!(
                "a dedup horizon of {horizon_ms} ms is given, and must be above 0"
            )));
        }
        let script = Script::new(&format!("{}{RECORD}", crate::claim_click::STORE));
        for (number, deployment) in deployments.iter().enumerate() {
            let mut call = script.prepare_invoke();
            let is_first = i32::from(number == 0);
            call.arg(horizon_ms).arg(deployment.version).arg(is_first).arg(deployment.log_id.to_string());
            for (partition, offset) in deployment.positions.iter() {
                call.arg(partition).arg(offset);
            }
            let refused: String = call.invoke_async(&mut self.connection).await?;
            if !refused.is_empty() {
                return Err(ClaimsError::Deployment(refused));
            }
        }
        Ok(())
    }
}
