//! What a claim costs in Redis: makes claims of impressions with ids of 20 characters, and divides the memory and the CPU
//! time that Redis says it uses. `cost [CLAIMS]`, by default a million.

use claims::{Billed, Claims, Deployment, LogRecord};
use click::{LogId, Millis};
use futures::stream;
use services::redis::{DURABLE, Redis};
use std::error::Error;
use std::time::Instant;

/// A figure that Redis gives of itself.
fn figure(redis: &Redis, section: &str, name: &str) -> Result<f64, Box<dyn Error>> {
    let info = redis.call(&["INFO", section]);
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).ok_or("no such figure")?;
    Ok(value.trim().parse()?)
}

/// Bytes in use, and CPU time in microseconds.
fn used(redis: &Redis) -> Result<(f64, f64), Box<dyn Error>> {
    let cpu_s = figure(redis, "cpu", "used_cpu_user")? + figure(redis, "cpu", "used_cpu_sys")?;
    Ok((figure(redis, "memory", "used_memory")?, cpu_s * 1e6))
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
        let claim_key = Some(format!("imp_{offset:016x}"));
        Ok::<_, Box<dyn Error + Send + Sync>>(LogRecord { claim_key, partition: 0, offset, appended_at })
    });
    let none = stream::empty::<Result<Billed, Box<dyn Error + Send + Sync>>>();
    let rebuilt = claims.rebuild(&[deployment], 86_400_000, Millis::new(0), none, stream::iter(log)).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let (bytes, us) = used(&redis)?;
    let each = |used: f64| used / rebuilt.claimed as f64;
    println!(
        "{} claims: each {:.0} bytes and {:.1} us of CPU of Redis; {:.0} a second",
        rebuilt.claimed,
        each(bytes - before.0),
        each(us - before.1),
        rebuilt.records as f64 / seconds
    );
    Ok(())
}
