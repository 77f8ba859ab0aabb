//! What a claim costs in Redis: makes claims of impressions with ids as long as those of the sample, and divides the
//! memory that Redis says it uses. `memory [CLAIMS]`, by default a million.

use claims::{Billed, Claims, Deployment, LogRecord};
use click::{LogId, Millis};
use futures::stream;
use services::redis::{DURABLE, Redis};
use std::error::Error;
use std::time::Instant;

fn used(redis: &Redis) -> Result<u64, Box<dyn Error>> {
    let info = redis.call(&["INFO", "memory"]);
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).ok_or("no used_memory")?;
    Ok(used.parse()?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let count: i64 = std::env::args().nth(1).map_or(Ok(1_000_000), |count| count.parse())?;
    let dir = tempfile::tempdir()?;
    let redis = Redis::start(dir.path(), &DURABLE).ok_or("redis-server is needed")?;
    let mut claims = Claims::connect(&redis.url()).await?;
    let deployment = Deployment { version: 1, log_id: LogId::random(), positions: [(0, 0)].into_iter().collect() };
    let before = used(&redis)?;
    let begun = Instant::now();
    let log = (0..count).map(|offset| {
        // A click every 10 ms, as long as a day lasts.
        let appended_at = Millis::new(1_776_643_200_000 + offset * 10 % 86_400_000);
        let claim_key = Some(format!("imp_{offset:016x}").parse()?);
        Ok::<_, Box<dyn Error + Send + Sync>>(LogRecord { claim_key, partition: 0, offset, appended_at })
    });
    let none = stream::empty::<Result<Billed, Box<dyn Error + Send + Sync>>>();
    let rebuilt = claims.rebuild(&[deployment], 86_400_000, Millis::new(0), none, stream::iter(log)).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let bytes = (used(&redis)? - before) as f64 / rebuilt.claimed as f64;
    println!("{} claims: {bytes:.0} bytes each; {:.0} a second", rebuilt.claimed, rebuilt.records as f64 / seconds);
    Ok(())
}
