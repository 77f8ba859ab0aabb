/*
[dependencies]
redis = { version = "=1.8.1", default-features = false, features = ["script", "tokio-comp"] }
tokio = { version = "1", features = ["net", "rt", "sync", "time"] }
*/
use arroyo_udf_plugin::udf;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, Script};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Write;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

// Records in one call. Redis serves nobody else meanwhile, a few milliseconds.
pub(crate) const BATCH_MAX: usize = 512;
// How long a connection, and an answer, may take. After it the call is made again on a new connection; a call that was
// carried out all the same changes nothing, since the same position gets the same answer.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
const ANSWER_WAIT: Duration = Duration::from_secs(10);
// Between two tries of a call that failed, and between two lines that say so.
const RETRY_WAIT: Duration = Duration::from_millis(100);
const ALARM_INTERVAL: Duration = Duration::from_secs(10);
// A hash of up to 128 short claims is one compact block in Redis. The number is part of what is stored: never change it.
const BUCKETS: u64 = 1 << 20;

// How claims lie in Redis, for every script that touches them. The keys:
//   claims:{span}:{bucket}   hash: impression -> its claims in that span of append time, each of them BYTES in FORMAT:
//                            log, partition, offset, append time, version
//   claims:spans             set: spans that have claims, "{width in ms}:{number}"
//   claims:dropping          hash: span that is over -> its first bucket that may still be there
//   claims:dropped_ms        claims of append times before it may be gone
//   claims:logs              hash: log id -> its number in claims
//   claims:through           hash: "{log id}:{partition}" -> "{offset}:{append time}" up to which claims are made
//   claims:versions          sorted set: the pipeline versions that were deployed
//   claims:start:{version}   hash: "{log id}:{partition}" -> the first offset of that version
//   claims:horizon_ms        the dedup horizon of the newest version
// Keys are not declared to Redis: this one is for claims alone, and not a cluster.
pub(crate) const STORE: &str = r"
local FORMAT, BYTES, BUCKETS = '<I2i4i8i8i8', 30, 1048576
local horizon = tonumber(redis.call('GET', 'claims:horizon_ms') or 86400000)
local function text(number) return string.format('%.0f', number) end
local function key_of(span, bucket) return 'claims:'..span..':'..bucket end
local function span_of(at) return text(horizon)..':'..text(math.floor(at / horizon)) end
local log_numbers, known_spans = {}, {}
local function log_number(log)
  if not log_numbers[log] then
    local number = redis.call('HGET', 'claims:logs', log)
    if not number then
      number = redis.call('HLEN', 'claims:logs') + 1
      redis.call('HSET', 'claims:logs', log, number)
    end
    log_numbers[log] = tonumber(number)
  end
  return log_numbers[log]
end
local function add(impression, bucket, held_in_span, log, partition, offset, at, version)
  local span = span_of(at)
  if not known_spans[span] then
    redis.call('SADD', 'claims:spans', span)
    known_spans[span] = true
  end
  local claim = struct.pack(FORMAT, log_number(log), partition, offset, at, version)
  redis.call('HSET', key_of(span, bucket), impression, held_in_span..claim)
end
local function drop_some()
  local span, from = unpack(redis.call('HGETALL', 'claims:dropping'))
  if not span then return 0 end
  from = tonumber(from)
  local keys = {}
  for bucket = from, math.min(from + 1023, BUCKETS - 1) do keys[#keys + 1] = key_of(span, text(bucket)) end
  if #keys > 0 then redis.call('UNLINK', unpack(keys)) end
  if from + 1024 < BUCKETS then redis.call('HSET', 'claims:dropping', span, text(from + 1024))
  else redis.call('HDEL', 'claims:dropping', span) end
  return 1
end
";

// One call a batch, all of it or nothing: everything is checked before anything is written.
// ARGV: version, log id; then six for each record: impression, its bucket ('' if it claims nothing), partition, offset,
// the offset that was asked for before it in its partition ('' if its claim is restored), append time.
// `claims:through` behind that offset means that Redis lost claims, after a failover to an older copy or a flush, or that
// records were skipped: refused until the missing claims are restored, since duplicates would be billed.
// Two claims that stand are the horizon apart, so of those that are made here a span holds one of an impression.
// A claim is void if a later version started at or before it: that version judges its record anew.
// Claims are dropped by append time, when every partition of the log is the horizon and an hour past their span; what
// would need them after that is refused. Redis' own expiry goes by the clock, and would forget while the engine is down.
const CLAIM: &str = r"
local version, log, fields = tonumber(ARGV[1]), ARGV[2], 6
local newest = redis.call('ZREVRANGE', 'claims:versions', 0, 0)[1]
if newest and version < tonumber(newest) then
  return redis.error_reply('STALE version '..ARGV[1]..' asks, and version '..newest..' is deployed')
elseif newest and version > tonumber(newest) then
  return redis.error_reply('UNDEPLOYED version '..ARGV[1]..' asks, and version '..newest..' is deployed: deploy it')
end
local dropped = tonumber(redis.call('GET', 'claims:dropped_ms') or -math.huge)
local through, latest = {}, -math.huge
for i = 3, #ARGV, fields do
  local partition, offset, before, at = ARGV[i + 2], tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5])
  if not through[partition] then
    local held = redis.call('HGET', 'claims:through', log..':'..partition) or '-1:0'
    local held_offset, held_at = string.match(held, '^(%-?%d+):(%-?%d+)$')
    through[partition] = { offset = tonumber(held_offset), at = tonumber(held_at) }
  end
  local held = through[partition]
  if before and held.offset < before then
    return redis.error_reply('MISSING claims of log '..log..' partition '..partition..' after offset '..text(held.offset)
      ..' up to '..text(before)..': Redis lost claims, or the engine skipped records; restore them with `tally claims rebuild`')
  elseif ARGV[i + 1] ~= '' and at - horizon < dropped then
    return redis.error_reply('DROPPED claims before append time '..text(dropped)..', and partition '..partition..' offset '
      ..text(offset)..' needs those from '..text(at - horizon)..' on; restore them with `tally claims rebuild`')
  end
  held.offset = math.max(held.offset, offset)
  if before then held.at, latest = math.max(held.at, at), math.max(latest, at) end
end

local spans, logs, own_log = {}, {}, log_number(log)
for _, span in ipairs(redis.call('SMEMBERS', 'claims:spans')) do
  local width, number = string.match(span, '^(%d+):(%-?%d+)$')
  spans[span] = { from = number * width, to = (number + 1) * width }
end
local held_logs = redis.call('HGETALL', 'claims:logs')
for i = 1, #held_logs, 2 do logs[tonumber(held_logs[i + 1])] = held_logs[i] end

local later = {}
local function is_void(held_log, partition, offset, held_version)
  if held_version >= version then return false end
  if not later[held_version] then
    later[held_version] = redis.call('ZRANGEBYSCORE', 'claims:versions', '('..text(held_version), text(version))
  end
  for _, by in ipairs(later[held_version]) do
    local start = redis.call('HGET', 'claims:start:'..by, logs[held_log]..':'..text(partition))
    if start and offset >= tonumber(start) then return true end
  end
  return false
end
local function claim(impression, bucket, partition, offset, at)
  local first = 1
  for span, of in pairs(spans) do
    local held = of.from < at + horizon and of.to > at - horizon and redis.call('HGET', key_of(span, bucket), impression)
    if held then
      local stand = {}
      for i = 1, #held, BYTES do
        local held_log, held_partition, held_offset, held_at, held_version = struct.unpack(FORMAT, held, i)
        if not is_void(held_log, held_partition, held_offset, held_version) then
          if held_log == own_log and held_partition == partition and held_offset == offset then return 1 end
          if math.abs(at - held_at) < horizon then first = 0 end
          stand[#stand + 1] = string.sub(held, i, i + BYTES - 1)
        end
      end
      if #stand == 0 then redis.call('HDEL', key_of(span, bucket), impression)
      elseif #stand * BYTES < #held then redis.call('HSET', key_of(span, bucket), impression, table.concat(stand)) end
    end
  end
  if first == 1 then
    add(impression, bucket, '', log, partition, offset, at, version)
    local number, own = math.floor(at / horizon), span_of(at)
    spans[own] = spans[own] or { from = number * horizon, to = (number + 1) * horizon }
  end
  return first
end
local answers = {}
for i = 3, #ARGV, fields do
  local answer = -1
  if ARGV[i + 1] ~= '' then
    answer = claim(ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]), tonumber(ARGV[i + 5]))
  end
  answers[#answers + 1] = answer
end
for partition, held in pairs(through) do
  redis.call('HSET', 'claims:through', log..':'..partition, text(held.offset)..':'..text(held.at))
end

local function slowest()
  local all, at = redis.call('HGETALL', 'claims:through'), math.huge
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, #log + 1) == log..':' and not string.find(all[i], ':', #log + 2, true) then
      at = math.min(at, tonumber(string.match(all[i + 1], ':(%-?%d+)$')))
    end
  end
  return at
end
for span, of in pairs(spans) do
  local over = of.to + horizon + 3600000
  if latest >= over and slowest() >= over then
    redis.call('SREM', 'claims:spans', span)
    redis.call('HSET', 'claims:dropping', span, 0)
    if of.to > dropped then
      dropped = of.to
      redis.call('SET', 'claims:dropped_ms', text(dropped))
    end
  end
end
drop_some()
return answers
";

// One record that asks.
pub(crate) struct Asked {
    // The impression; none for a record that cannot be billed, which claims nothing.
    pub(crate) key: Option<String>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    // The offset that was asked for before it in its partition: claims must reach up to there. None for a record whose claim
    // is restored: the engine may be far behind it, so nothing is dropped because of it.
    pub(crate) before: Option<i64>,
    pub(crate) appended_ms: i64,
}

// Where the claims of an impression lie within a span: FNV-1a.
pub(crate) fn bucket(impression: &str) -> u64 {
    let hash = impression
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash ^ (hash >> 32)) % BUCKETS
}

pub(crate) fn claim_script() -> Script {
    Script::new(&format!("{STORE}{CLAIM}"))
}

// The answers in the order asked, 1 or 0, and -1 for a record without a key. All of the batch is claimed, or nothing.
pub(crate) async fn claim<'a>(
    connection: &mut MultiplexedConnection,
    script: &Script,
    version: i64,
    log_id: &str,
    batch: impl ExactSizeIterator<Item = &'a Asked>,
) -> Result<Vec<i64>, RedisError> {
    let count = batch.len();
    let mut call = script.prepare_invoke();
    call.arg(version).arg(log_id);
    for asked in batch {
        match &asked.key {
            Some(key) => call.arg(key).arg(bucket(key)),
            None => call.arg("").arg(""),
        };
        call.arg(asked.partition)
            .arg(asked.offset)
            .arg(asked.before.map_or(String::new(), |before| before.to_string()))
            .arg(asked.appended_ms);
    }
    let answers: Vec<i64> = call.invoke_async(connection).await?;
    if answers.len() != count {
        let what = format!("{} answers to {count} records", answers.len());
        return Err(RedisError::from((ErrorKind::UnexpectedReturnType, "claims", what)));
    }
    Ok(answers)
}

// A connection to a Redis that loses no claim that it has acknowledged. Any other is refused.
pub(crate) async fn connect(url: &str) -> Result<MultiplexedConnection, RedisError> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_WAIT)).set_response_timeout(Some(ANSWER_WAIT));
    let mut connection = Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?;
    for (setting, must) in [
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("no-appendfsync-on-rewrite", "no"),
        ("maxmemory-policy", "noeviction"),
    ] {
        let (_, is): (String, String) =
            redis::cmd("CONFIG").arg("GET").arg(setting).query_async(&mut connection).await?;
        if is != must {
            let what = format!("{setting} is {is}, and must be {must}");
            return Err(RedisError::from((ErrorKind::InvalidClientConfig, "this Redis can lose claims", what)));
        }
    }
    Ok(connection)
}

// A record that waits for its answer, and whom to tell.
struct Waiting {
    asked: Asked,
    log_id: String,
    version: i64,
    answer: oneshot::Sender<Option<i64>>,
}

// A line for the operator. Where nobody takes it, work goes on.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "claim_click: {what}");
}

// Says what claims wait for: at once, and then now and then.
#[derive(Default)]
struct Alarm {
    since: Option<Instant>,
    told: Option<(Instant, String)>,
}

impl Alarm {
    fn tell(&mut self, error: &RedisError) {
        let since = *self.since.get_or_insert_with(Instant::now);
        let error = error.to_string();
        if self.told.as_ref().is_none_or(|(at, told)| at.elapsed() >= ALARM_INTERVAL || *told != error) {
            say(&format!("nothing is answered since {} s: {error}", since.elapsed().as_secs()));
            self.told = Some((Instant::now(), error));
        }
    }

    fn over(&mut self) {
        if let Some(since) = self.since.take() {
            say(&format!("answers again after {} s", since.elapsed().as_secs()));
            self.told = None;
        }
    }
}

// One queue in the order asked, and one thread that drains it: of two clicks on one impression the first in the log must
// win, also around a reconnect. A task on the runtime of the operator that asked first would die with that operator,
// while others still ask. What waits here is bounded by `allowed_in_flight` for each operator.
static QUEUE: OnceLock<Option<mpsc::UnboundedSender<Waiting>>> = OnceLock::new();

thread_local! {
    // By partition: log id, version and offset that were asked for last. An operator has a thread of its own, so nothing
    // is here when it starts, and its first record must follow what has claims.
    static LAST: RefCell<HashMap<i32, (String, i64, i64)>> = RefCell::default();
}

fn start() -> Option<mpsc::UnboundedSender<Waiting>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (sender, queue) = mpsc::unbounded_channel();
    let started = runtime.and_then(|runtime| {
        std::thread::Builder::new().name("claims".to_string()).spawn(move || runtime.block_on(answer_in_order(queue)))
    });
    match started {
        Ok(_) => Some(sender),
        Err(error) => {
            say(&format!("every claim stays undecided, since its thread cannot start: {error}"));
            None
        }
    }
}

async fn answer_in_order(mut queue: mpsc::UnboundedReceiver<Waiting>) {
    let script = claim_script();
    let mut connection = None;
    let mut alarm = Alarm::default();
    let mut waiting: Vec<Waiting> = Vec::new();
    // Records of a version that is over. They are never answered, so their pipeline writes nothing more.
    let mut refused: Vec<Waiting> = Vec::new();
    while !waiting.is_empty() || queue.recv_many(&mut waiting, BATCH_MAX).await > 0 {
        // Nobody waits any more where an operator was stopped; after its restart it asks again.
        waiting.retain(|one| !one.answer.is_closed());
        refused.retain(|one| !one.answer.is_closed());
        let Some(Waiting { version, log_id, .. }) = waiting.first() else { continue };
        let (version, log_id) = (*version, log_id.clone());
        let alike = waiting.iter().take_while(|one| one.version == version && one.log_id == log_id).count();
        let batch = waiting[..alike].iter().map(|one| &one.asked);
        match answer(&mut connection, &script, version, &log_id, batch).await {
            Ok(answers) => {
                alarm.over();
                for (one, answer) in waiting.drain(..alike).zip(answers) {
                    // Whoever asked may have gone by now.
                    let _ = one.answer.send(one.asked.key.map(|_| answer));
                }
            }
            Err(error) if error.code() == Some("STALE") => {
                alarm.tell(&error);
                refused.extend(waiting.drain(..alike));
            }
            Err(error) => {
                alarm.tell(&error);
                if !matches!(error.code(), Some("MISSING" | "DROPPED" | "UNDEPLOYED")) {
                    connection = None;
                }
                tokio::time::sleep(RETRY_WAIT).await;
            }
        }
    }
}

async fn answer<'a>(
    connection: &mut Option<MultiplexedConnection>,
    script: &Script,
    version: i64,
    log_id: &str,
    batch: impl ExactSizeIterator<Item = &'a Asked>,
) -> Result<Vec<i64>, RedisError> {
    let connection = match connection {
        Some(connection) => connection,
        None => {
            let unset =
                (ErrorKind::InvalidClientConfig, "the environment variable CLAIMS_REDIS_URL is not a Redis URL");
            let url = std::env::var("CLAIMS_REDIS_URL").map_err(|_| RedisError::from(unset))?;
            connection.insert(connect(&url).await?)
        }
    };
    claim(connection, script, version, log_id, batch).await
}

/// 1 for the first position that claims an impression within the dedup horizon, measured in append time, else 0; NULL for
/// a NULL key, which claims nothing. The same position asking again gets the same answer.
///
/// Claims are kept in the Redis that the environment variable `CLAIMS_REDIS_URL` names, which must be durable. While it
/// is away or lacks claims nothing is answered, and standard error says why; a pipeline version that is over is never
/// answered. Wrong answers would be billed; so the time limit of a call, which ends the job, is as good as none.
#[udf(ordered, allowed_in_flight = 4096, timeout = "8760h")]
pub async fn claim_click(
    claim_key: Option<&str>,
    log_id: &str,
    partition: i32,
    offset: i64,
    appended_ms: i64,
    version: i64,
) -> Option<i64> {
    let queue = QUEUE.get_or_init(start).as_ref()?;
    // Up to here, and to the end of `send`, nothing waits: calls reach the queue in the order in which they were made.
    let before = LAST.with(|last| {
        let now = (log_id.to_string(), version, offset);
        match last.borrow_mut().insert(partition, now) {
            Some((log, of, before)) if log == log_id && of == version => before,
            _ => offset - 1,
        }
    });
    let (answer, answered) = oneshot::channel();
    let asked = Asked { key: claim_key.map(str::to_string), partition, offset, before: Some(before), appended_ms };
    // The thread never ends while this can be called; if it did, the record would be undecided.
    queue.send(Waiting { asked, log_id: log_id.to_string(), version, answer }).ok()?;
    answered.await.ok()?
}
