//! A process that does with `claim_click` what a worker of Arroyo does, so that a test can kill it: `worker LIBRARY`.
//!
//! Each line on standard input is one record for one operator, which is started by its first: operator, partition,
//! offset, append time, version, log id, and the claim key if there is one, with tabs between them. `operator stop`
//! stops it; the end of input ends the process. Each line on standard output is an answer: partition, offset, answer.

use std::collections::btree_map::{BTreeMap, Entry};
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::mpsc::{sync_channel, RecvTimeoutError};
use std::time::Duration;
use udfs_arroyo::{Asked, ClaimLibrary, Operator};

/// How long the worker waits for a line before it looks for answers.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

fn parse(line: &str) -> Option<Asked> {
    let mut fields = line.splitn(6, '\t');
    let mut field = || fields.next();
    Some(Asked {
        partition: field()?.parse().ok()?,
        offset: field()?.parse().ok()?,
        appended_ms: field()?.parse().ok()?,
        version: field()?.parse().ok()?,
        log_id: field()?.to_string(),
        key: field().map(|key| key.replace("\\n", "\n")),
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let library = std::env::args().nth(1).ok_or("usage: worker LIBRARY")?;
    let library = ClaimLibrary::open(Path::new(&library))?;
    let (sender, lines) = sync_channel(1024);
    std::thread::spawn(move || {
        std::io::stdin().lock().lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut operators: BTreeMap<u64, (Operator, Vec<(i32, i64)>)> = BTreeMap::new();
    let mut output = std::io::stdout().lock();
    loop {
        let mut line = lines.recv_timeout(LOOK_INTERVAL);
        if line == Err(RecvTimeoutError::Disconnected) {
            return Ok(());
        }
        while let Ok(text) = &line {
            let (operator, rest) = text.split_once('\t').ok_or("a line without an operator")?;
            let operator = operator.parse()?;
            if rest == "stop" {
                operators.remove(&operator);
            } else {
                let asked = parse(rest).ok_or_else(|| format!("not a record: {rest:?}"))?;
                let (operator, sent) = match operators.entry(operator) {
                    Entry::Occupied(running) => running.into_mut(),
                    Entry::Vacant(new) => new.insert((library.start()?, Vec::new())),
                };
                runtime.block_on(operator.send(sent.len() as u64, &asked))?;
                sent.push((asked.partition, asked.offset));
            }
            line = lines.try_recv().map_err(|_| RecvTimeoutError::Timeout);
        }
        for (operator, sent) in operators.values() {
            for (id, answer) in operator.drain()? {
                let (partition, offset) = sent[id as usize];
                let answer = answer.map_or("null".to_string(), |answer| answer.to_string());
                writeln!(output, "{partition}\t{offset}\t{answer}")?;
            }
        }
        output.flush()?;
    }
}
