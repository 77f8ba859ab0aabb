//! A worker process, driven from a test: records in, answers out, and what it says on standard error.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use udfs_arroyo::Asked;

/// How long anything may take on a busy machine before a test fails.
const WAIT: Duration = Duration::from_secs(120);

/// Answers by partition and offset; more than one where it asked again.
pub type Answers = BTreeMap<(i32, i64), Vec<Option<i64>>>;

pub struct Worker {
    child: Child,
    stdin: ChildStdin,
    answers: Arc<Mutex<Answers>>,
    said: Arc<Mutex<Vec<String>>>,
    /// How many records it was asked for.
    asked: usize,
}

pub fn library(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let examples = test.parent().unwrap().parent().unwrap().join("examples");
    let library = examples.join(format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX));
    let written = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src").join(name).with_extension("rs");
    let is_built = written(&library) >= written(&source);
    assert!(is_built, "run `cargo test` without naming a test: {} is old", library.display());
    library
}

impl Worker {
    pub fn start(redis_url: &str) -> Worker {
        let mut command = Command::new(env!("CARGO_BIN_EXE_worker"));
        command.arg(library("claim_click")).env("CLAIMS_REDIS_URL", redis_url);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (answers, said) = (Arc::<Mutex<Answers>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let (to_answers, to_said) = (answers.clone(), said.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let mut fields = line.split('\t');
                let mut field = || fields.next().unwrap();
                let place = (field().parse().unwrap(), field().parse().unwrap());
                to_answers.lock().unwrap().entry(place).or_default().push(field().parse().ok());
            }
        });
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                to_said.lock().unwrap().push(line);
            }
        });
        let stdin = child.stdin.take().unwrap();
        Worker { child, stdin, answers, said, asked: 0 }
    }

    /// Hands records to an operator, in this order.
    pub fn ask<'a>(&mut self, operator: usize, records: impl IntoIterator<Item = &'a Asked>) {
        let mut lines = String::new();
        for record in records {
            let Asked { partition, offset, appended_ms, version, log_id, key } = record;
            self.asked += 1;
            lines += &format!("{operator}\t{partition}\t{offset}\t{appended_ms}\t{version}\t{log_id}");
            lines += &key.as_ref().map_or(String::new(), |key| format!("\t{}", key.replace('\n', "\\n")));
            lines.push('\n');
        }
        self.stdin.write_all(lines.as_bytes()).unwrap();
    }

    /// Stops operators, as a restart of their pipeline does within a process. What they have not answered they never
    /// will; nothing may be answered meanwhile.
    pub fn stop_operators(&mut self, operators: std::ops::Range<usize>) {
        for operator in operators {
            writeln!(self.stdin, "{operator}\tstop").unwrap();
        }
        self.asked = self.answers().values().map(Vec::len).sum();
    }

    /// Waits until everything that was asked for is answered.
    pub fn all_answered(&mut self) -> Answers {
        self.answered(self.asked)
    }

    /// Waits until there are so many answers.
    pub fn answered(&mut self, count: usize) -> Answers {
        self.eventually("all answers", |answers, _| answers.values().map(Vec::len).sum::<usize>() >= count);
        self.answers()
    }

    pub fn answers(&self) -> Answers {
        self.answers.lock().unwrap().clone()
    }

    /// Waits until it says this on standard error.
    pub fn says(&mut self, text: &str) {
        self.eventually(text, |_, said| said.iter().any(|line| line.contains(text)));
    }

    fn eventually(&mut self, what: &str, happened: impl Fn(&Answers, &[String]) -> bool) {
        let until = Instant::now() + WAIT;
        while !happened(&self.answers.lock().unwrap(), &self.said.lock().unwrap()) {
            let said = || self.said.lock().unwrap().join("\n");
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the worker ended with {status}, before {what}:\n{}", said());
            }
            assert!(Instant::now() < until, "never happened: {what}; the worker says:\n{}", said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// kill -9, as a crash.
impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
