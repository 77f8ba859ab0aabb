//! An Arroyo that answers as a real one was recorded (`answers/`), and keeps a job's states as that did. The rest of the
//! system is beside it, in memory, so that all that happens stands in one journal.

use async_trait::async_trait;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use click::{LogId, Millis, Offsets, Partition};
use deploy::{Arroyo, Cluster, ClusterError, Deadlines, Deployment, Progress, Topic};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub const PARTITIONS: Partition = 4;

/// When the last rows were written: with the recorded checkpoint.
pub const WRITTEN: i64 = 1_795_508_120_522;

/// A recorded request with its answer.
pub struct Recorded(Value);

impl Recorded {
    pub fn of(name: &str) -> Self {
        // Tests of other crates use this file too.
        let path = format!("{}/../deploy/tests/answers/{name}.json", env!("CARGO_MANIFEST_DIR"));
        Recorded(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    }

    /// Status and body.
    pub fn answer(&self) -> (StatusCode, Value) {
        let status = StatusCode::from_u16(self.0["status"].as_u64().unwrap() as u16).unwrap();
        (status, self.0["response"].clone())
    }

    /// Whether a body has the fields of the recorded one, no more and no fewer.
    fn is_shape_of(&self, body: &Value) -> bool {
        fn keys(value: &Value) -> Vec<&String> {
            let mut keys: Vec<&String> = value.as_object().map(|object| object.keys().collect()).unwrap_or_default();
            keys.sort();
            keys
        }
        let recorded = &self.0["request"]["body"];
        let udfs = body.get("udfs").and_then(Value::as_array).into_iter().flatten();
        keys(recorded) == keys(body) && udfs.into_iter().all(|udf| keys(udf) == ["definition", "language"])
    }
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fault {
    #[default]
    None,
    /// The n-th thing that is asked of anyone is answered with an error, and not done.
    Refuse(usize),
    /// The same, but it was done.
    LoseAnswer(usize),
    /// No answer comes at all.
    Silence,
    /// Answers that no Arroyo gives.
    OtherServer,
    LostEdge,
    /// Plans nothing; the name is that of the recorded answer.
    BadSql(&'static str),
    /// Plans when asked to, and not when it counts.
    BadSqlAtCreation,
    BadFunction,
    /// Refuses, with these words, before it compiles anything.
    RefusesToCompile(&'static str),
    /// Checkpoints never end. With a stop at once the job stops.
    HangsInCheckpoints,
    /// Nothing stops it.
    HangsForGood,
    /// New pipelines fail at their start.
    Fails,
    /// This many new pipelines restart before their first checkpoint.
    Restarts(u32),
    /// No record reaches this partition.
    SilentPartition(Partition),
    /// No further row comes from this partition.
    StopsWriting(Partition),
}

#[derive(Clone, Debug)]
pub struct FakePipeline {
    pub id: String,
    pub name: String,
    pub query: String,
    pub parallelism: u64,
    pub interval_micros: u64,
    pub state: String,
    pub running_desired: bool,
    pub run_id: u64,
    pub checkpoints: Vec<Value>,
}

#[derive(Default)]
pub struct World {
    pub fault: Fault,
    pub journal: Vec<String>,
    pub pipelines: Vec<FakePipeline>,
    pub deployments: Vec<Deployment>,
    pub announced: Vec<i64>,
    pub committed: BTreeMap<String, Offsets>,
    /// The functions' sources beside each query that came, to be planned, compiled or run.
    pub uploads: Vec<Vec<String>>,
    /// One that began and did not end.
    pub repair: Option<String>,
    asked: usize,
    /// Rows of each partition, one more with each look at a pipeline that works.
    written: i64,
}

/// A handle on the world, for the caller and for the server.
#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<World>>);

impl Fake {
    pub fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    /// Serves on loopback.
    pub async fn serve(&self) -> Arroyo {
        self.serve_within(Deadlines::default()).await
    }

    pub async fn serve_within(&self, deadlines: Deadlines) -> Arroyo {
        Arroyo::new(&self.listen().await, deadlines).unwrap()
    }

    /// Serves on loopback, and says where.
    pub async fn listen(&self) -> String {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        address
    }

    /// What happened since this was last asked.
    pub fn journal(&self) -> Vec<String> {
        std::mem::take(&mut self.world().journal)
    }

    pub fn set(&self, fault: Fault) {
        let mut world = self.world();
        world.fault = fault;
        world.asked = 0;
    }

    /// How many things were asked since the fault was set.
    pub fn asked(&self) -> usize {
        self.world().asked
    }
}

pub fn log_id() -> LogId {
    LogId::from_bytes([7; 16])
}

async fn answer(State(fake): State<Fake>, method: Method, uri: Uri, body: Bytes) -> Response {
    if fake.world().fault == Fault::Silence {
        std::future::pending::<()>().await;
    }
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (status, answer) = fake.world().asked_over_http(&method, &uri, &body);
    (status, axum::Json(answer)).into_response()
}

fn recorded(name: &str) -> (StatusCode, Value) {
    Recorded::of(name).answer()
}

impl World {
    /// Whether this thing is refused, and whether it is done before that.
    fn goes_wrong(&mut self) -> (bool, bool) {
        let number = self.asked;
        self.asked += 1;
        (self.fault == Fault::Refuse(number), self.fault == Fault::LoseAnswer(number))
    }

    fn asked_over_http(&mut self, method: &Method, uri: &Uri, body: &Value) -> (StatusCode, Value) {
        let error = (StatusCode::INTERNAL_SERVER_ERROR, json!({ "error": "Something went wrong" }));
        match self.goes_wrong() {
            (true, _) => error,
            (_, lost) => {
                let answer = self.http(method, uri, body);
                if lost { error } else { answer }
            }
        }
    }

    fn http(&mut self, method: &Method, uri: &Uri, body: &Value) -> (StatusCode, Value) {
        if self.fault == Fault::OtherServer {
            return (StatusCode::OK, json!({ "hello": "world" }));
        }
        let path = uri.path().strip_prefix("/api/v1/").unwrap_or_default();
        let parts: Vec<&str> = path.split('/').collect();
        let shaped = |name: &str| Recorded::of(name).is_shape_of(body);
        if let Some(udfs) = body["udfs"].as_array() {
            let source = |udf: &Value| udf["definition"].as_str().unwrap_or_default().to_string();
            self.uploads.push(udfs.iter().map(source).collect());
        }
        match (method.as_str(), parts.as_slice()) {
            ("GET", ["ping"]) => recorded("ping"),
            ("GET", ["pipelines"]) => {
                let data: Vec<Value> = self.pipelines.iter().rev().map(FakePipeline::shown).collect();
                (StatusCode::OK, json!({ "data": data, "hasMore": false }))
            }
            ("POST", ["pipelines", "validate_query"]) if shaped("validate_ok") => match self.fault {
                Fault::LostEdge => recorded("validate_lost_edge"),
                Fault::BadSql(name) => recorded(name),
                _ => recorded("validate_ok"),
            },
            ("POST", ["udfs", "validate"]) if shaped("udf_validate_error") => {
                let name = if self.fault == Fault::BadFunction { "udf_validate_error" } else { "udf_ok" };
                recorded(name)
            }
            ("POST", ["pipelines"]) if shaped("pipeline_create") => self.create(body),
            ("PATCH", ["pipelines", id]) if shaped("pipeline_restart") => self.set_stop(id, &body["stop"]),
            ("GET", ["pipelines", id, "jobs"]) => self.with(id, FakePipeline::job),
            ("GET", ["pipelines", id, "jobs", job, "checkpoints"])
                if job.strip_prefix("job_") == id.strip_prefix("pl_") =>
            {
                self.with(id, FakePipeline::checkpoints)
            }
            ("GET", ["pipelines", id, "jobs", job, "errors"]) if job.strip_prefix("job_") == id.strip_prefix("pl_") => {
                recorded("job_errors")
            }
            _ => (StatusCode::NOT_FOUND, json!({ "error": "Route not found" })),
        }
    }

    fn create(&mut self, body: &Value) -> (StatusCode, Value) {
        let text = |name: &str| body[name].as_str().unwrap().to_string();
        if self.fault == Fault::BadFunction {
            return recorded("pipeline_create_bad_udf");
        }
        if let Fault::RefusesToCompile(reason) = self.fault {
            return (StatusCode::BAD_REQUEST, json!({ "error": reason }));
        }
        let query = text("query");
        if let Some(table) = query.strip_prefix("SELECT * FROM ") {
            self.journal.push("compile".into());
            let (status, mut answer) = recorded("pipeline_create_bad_sql");
            let said = answer["error"].as_str().unwrap();
            assert!(said.contains("'claimedd'"), "{said}");
            answer["error"] = json!(said.replace("claimedd", table));
            return (status, answer);
        }
        if self.fault == Fault::BadSqlAtCreation {
            return recorded("pipeline_create_bad_sql");
        }
        self.journal.push(format!("create {}", text("name")));
        let pipeline = FakePipeline {
            id: format!("pl_{}", self.pipelines.len()),
            name: text("name"),
            query,
            parallelism: body["parallelism"].as_u64().unwrap(),
            interval_micros: body["checkpoint_interval_micros"].as_u64().unwrap(),
            state: "Created".into(),
            running_desired: true,
            run_id: 0,
            checkpoints: Vec::new(),
        };
        let (status, mut answer) = recorded("pipeline_create");
        fill(&mut answer, &pipeline.shown());
        self.pipelines.push(pipeline);
        (status, answer)
    }

    fn set_stop(&mut self, id: &str, stop: &Value) -> (StatusCode, Value) {
        let hangs = [Fault::HangsInCheckpoints, Fault::HangsForGood].contains(&self.fault);
        let at_once = stop == "immediate" && self.fault != Fault::HangsForGood;
        let Some(pipeline) = self.pipelines.iter_mut().find(|pipeline| pipeline.id == id) else {
            return recorded("pipeline_unknown");
        };
        self.journal.push(format!("{} {}", stop.as_str().unwrap(), pipeline.name));
        pipeline.running_desired = stop == "none";
        if stop != "none" && pipeline.state != "Stopped" && pipeline.state != "Failed" {
            pipeline.state = match at_once || (!hangs && pipeline.run_id == 0) {
                true => "Stopped".into(),
                false => "CheckpointStopping".into(),
            };
        }
        let (status, mut answer) =
            recorded(if stop == "none" { "pipeline_restart" } else { "pipeline_stop_checkpoint" });
        fill(&mut answer, &pipeline.shown());
        (status, answer)
    }

    fn with(&mut self, id: &str, ask: fn(&mut FakePipeline, &mut Fault) -> (StatusCode, Value)) -> (StatusCode, Value) {
        let World { pipelines, fault, .. } = self;
        match pipelines.iter_mut().find(|pipeline| pipeline.id == id) {
            Some(pipeline) => ask(pipeline, fault),
            None => recorded("pipeline_unknown"),
        }
    }

    fn asked_of_cluster(&mut self, what: &str) -> Result<bool, ClusterError> {
        match self.goes_wrong() {
            (true, _) => Err(format!("{what} refused").into()),
            (_, lost) => Ok(lost),
        }
    }
}

/// Puts what is known over what was recorded.
fn fill(answer: &mut Value, known: &Value) {
    for (name, value) in known.as_object().unwrap() {
        answer[name] = value.clone();
    }
}

impl FakePipeline {
    fn shown(&self) -> Value {
        let (_, mut answer) = recorded("pipeline_get");
        let known = json!({
            "id": self.id, "name": self.name, "query": self.query, "checkpoint_interval_micros": self.interval_micros,
        });
        fill(&mut answer, &known);
        answer
    }

    pub fn is_checkpointed(&self) -> bool {
        self.checkpoints.iter().any(|checkpoint| !checkpoint["finish_time"].is_null())
    }

    /// Each look finds it one state further.
    fn job(&mut self, fault: &mut Fault) -> (StatusCode, Value) {
        let (status, mut answer) = recorded(match self.state.as_str() {
            "Created" => "pipeline_jobs_created",
            "CheckpointStopping" => "pipeline_jobs_stopping",
            "Stopped" => "pipeline_jobs_stopped",
            _ => "pipeline_jobs_running",
        });
        let job = &mut answer["data"][0];
        job["id"] = json!(format!("job_{}", self.id.strip_prefix("pl_").unwrap()));
        job["state"] = json!(self.state);
        job["run_id"] = json!(self.run_id);
        job["running_desired"] = json!(self.running_desired);
        if self.state == "Failed" {
            job["failure_reason"] = json!("out of memory");
        }
        let hangs = [Fault::HangsInCheckpoints, Fault::HangsForGood].contains(fault);
        let next = match self.state.as_str() {
            "Created" if *fault == Fault::Fails => "Failed",
            "Created" => "Scheduling",
            "Scheduling" => {
                self.run_id += 1;
                "Running"
            }
            "Running" if self.run_id == 1 && !self.is_checkpointed() && matches!(fault, Fault::Restarts(1..)) => {
                let Fault::Restarts(left) = fault else { unreachable!() };
                *left -= 1;
                self.checkpoints.clear();
                "Scheduling"
            }
            "CheckpointStopping" if !hangs => "Stopped",
            "Stopped" if self.running_desired => "Scheduling",
            same => same,
        };
        self.state = next.to_string();
        (status, answer)
    }

    /// Each look at a running job finds one more, or the last one completed.
    fn checkpoints(&mut self, fault: &mut Fault) -> (StatusCode, Value) {
        let (status, answer) = recorded("job_checkpoints");
        let hangs = [Fault::HangsInCheckpoints, Fault::HangsForGood].contains(fault);
        let finished = answer["data"][0]["finish_time"].clone();
        match self.checkpoints.last_mut() {
            _ if self.state != "Running" => {}
            Some(last) if last["finish_time"].is_null() => {
                if !hangs {
                    last["finish_time"] = finished;
                }
            }
            _ => {
                let mut next = answer["data"][0].clone();
                next["epoch"] = json!(self.checkpoints.len() + 1);
                next["finish_time"] = Value::Null;
                self.checkpoints.push(next);
            }
        }
        (status, json!({ "data": self.checkpoints }))
    }
}

#[async_trait]
impl Cluster for Fake {
    async fn topic(&self) -> Result<Topic, ClusterError> {
        self.world().asked_of_cluster("topic")?;
        Ok(Topic { log_id: log_id(), partitions: PARTITIONS })
    }

    async fn current(&self) -> Result<Option<Deployment>, ClusterError> {
        let mut world = self.world();
        world.asked_of_cluster("current")?;
        Ok(world.deployments.last().cloned())
    }

    async fn repair(&self) -> Result<Option<String>, ClusterError> {
        let mut world = self.world();
        world.asked_of_cluster("repair")?;
        Ok(world.repair.clone())
    }

    async fn record(&self, digest: &str, version: i64, give_up: bool) -> Result<Deployment, ClusterError> {
        let mut world = self.world();
        let lost = world.asked_of_cluster("record")?;
        let next = world.deployments.len() as i64 + 1;
        if version != next {
            return Err(format!("version {next} comes next").into());
        }
        match world.repair.take() {
            Some(repair) if !give_up => {
                world.repair = Some(repair);
                return Err("a repair began".into());
            }
            Some(repair) => world.journal.push(format!("give up {repair}")),
            None => {}
        }
        // The last partition has seen no closing yet.
        let start = (0..PARTITIONS - 1).map(|partition| (partition, version * 100 + i64::from(partition))).collect();
        let deployment = Deployment { version, digest: digest.to_string(), log_id: log_id(), start };
        world.deployments.push(deployment.clone());
        world.journal.push(format!("record {version}"));
        if lost { Err("answer lost".into()) } else { Ok(deployment) }
    }

    async fn announce(&self, deployment: &Deployment) -> Result<(), ClusterError> {
        let mut world = self.world();
        let lost = world.asked_of_cluster("announce")?;
        world.announced.push(deployment.version);
        world.journal.push(format!("announce {}", deployment.version));
        if lost { Err("answer lost".into()) } else { Ok(()) }
    }

    async fn commit(&self, group: &str, start: &Offsets) -> Result<(), ClusterError> {
        let mut world = self.world();
        let lost = world.asked_of_cluster("commit")?;
        world.committed.insert(group.to_string(), start.clone());
        world.journal.push(format!("commit {group}"));
        if lost { Err("answer lost".into()) } else { Ok(()) }
    }

    async fn progress(&self, deployment: &Deployment) -> Result<Progress, ClusterError> {
        let mut world = self.world();
        world.asked_of_cluster("progress")?;
        let is_ours = |p: &&FakePipeline| p.name.ends_with(&format!("-{}", deployment.version)) && p.run_id > 0;
        let is_running = world.pipelines.iter().filter(is_ours).any(|pipeline| pipeline.state == "Running");
        world.written += i64::from(is_running);
        let written = world.written;
        let ends: Offsets = (0..PARTITIONS).map(|partition| (partition, 1_000 + written)).collect();
        if world.pipelines.iter().find(is_ours).is_none() {
            return Ok(Progress { ends, ..Progress::default() });
        }
        let row = |partition: Partition| match world.fault {
            Fault::SilentPartition(silent) if silent == partition => None,
            Fault::StopsWriting(stopped) if stopped == partition => Some((partition, 990 + i64::from(partition))),
            _ => Some((partition, 990 + i64::from(partition) + written)),
        };
        let rows: Offsets = (0..PARTITIONS).filter_map(row).collect();
        let written = rows.iter().map(|(partition, _)| (partition, Millis::new(WRITTEN))).collect();
        Ok(Progress { rows, written, ends })
    }
}
