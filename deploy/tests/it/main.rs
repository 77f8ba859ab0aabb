//! Deployments to an Arroyo that answers as a real one was recorded.
#![allow(clippy::unwrap_used)]

mod fake;
mod running;
mod status;
mod traps;

use deploy::{Arroyo, Deadlines, DeployError, Deployer, Deployment, Settings, Source, Step};
use fake::{Fake, Fault, PARTITIONS};
use pipeline_files::PipelineFiles;
use std::time::Duration;

const SQL: &str = include_str!("../../../pipelines/clicks.sql");

/// The signature of the function that pipelines ask for claims.
const CLAIM_CLICK: &str = include_str!("../traps/claim_click.rs");

pub fn files() -> PipelineFiles {
    PipelineFiles::one("pipelines/clicks.sql", SQL)
}

fn changed_sql() -> String {
    let changed = SQL.replace("ELSE bot_reason(", "WHEN country = 'ZZ' THEN 'nowhere' ELSE bot_reason(");
    assert_ne!(changed, SQL);
    changed
}

fn changed_files() -> PipelineFiles {
    PipelineFiles::one("pipelines/clicks.sql", &changed_sql())
}

/// The functions of this repository; the one for claims is only read here, never compiled.
pub fn functions() -> Vec<Source> {
    let mut functions = deploy::sources();
    functions.retain(|function| function.name != "claim_click");
    functions.push(Source { name: "claim_click", source: CLAIM_CLICK });
    functions
}

/// Waits are long enough for any machine; a test that expects one to end unmet shortens it.
pub fn settings() -> Settings {
    let (poll, checkpoint_interval) = (Duration::from_millis(1), Duration::from_secs(2));
    Settings { poll, checkpoint_interval, ..Settings::default() }
}

/// Waits that end as soon as they can.
fn impatient() -> Settings {
    let (stop_wait, start_wait) = (Duration::from_millis(100), Duration::from_millis(2_100));
    Settings { stop_wait, start_wait, ..settings() }
}

async fn deploy(fake: &Fake, files: &PipelineFiles, again: bool) -> Result<Deployment, DeployError> {
    deploy_to(&fake.serve().await, fake, files, again, settings()).await
}

async fn deploy_to(
    arroyo: &Arroyo,
    cluster: &Fake,
    files: &PipelineFiles,
    again: bool,
    settings: Settings,
) -> Result<Deployment, DeployError> {
    let functions = functions();
    let deployer = Deployer { arroyo, cluster, files, functions: &functions, settings: &settings };
    deployer.deploy(again, &|_: &Step| {}).await
}

async fn plan(fake: &Fake, files: &PipelineFiles, again: bool) -> Result<String, DeployError> {
    let (arroyo, functions, settings) = (fake.serve().await, functions(), settings());
    let deployer = Deployer { arroyo: &arroyo, cluster: fake, files, functions: &functions, settings: &settings };
    Ok(deployer.plan(again).await?.to_string())
}

/// A world in which version 1 runs.
pub async fn running() -> Fake {
    let fake = Fake::default();
    deploy(&fake, &files(), false).await.unwrap();
    fake.journal();
    fake
}

/// One pipeline works, that of the newest version, from its start; everything older is over. Each came with the functions.
#[track_caller]
fn check_end(fake: &Fake, deployment: &Deployment) {
    let world = fake.world();
    assert_eq!(world.deployments.last(), Some(deployment));
    assert_eq!(world.announced.last(), Some(&deployment.version));
    let name = format!("tally-clicks-{}", deployment.version);
    let working: Vec<_> =
        world.pipelines.iter().filter(|p| !["Stopped", "Failed"].contains(&p.state.as_str())).collect();
    assert_eq!(working.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), [name.as_str()]);
    let pipeline = working[0];
    assert!(pipeline.state == "Running" && pipeline.is_checkpointed());
    assert_eq!(pipeline.parallelism, PARTITIONS as u64);
    assert_eq!(pipeline.interval_micros, 2_000_000);
    for filled in
        [&format!("'source.group_id' = '{name}'"), "bootstrap_servers = '127.0.0.1:9092'", "INTERVAL '300 seconds'"]
    {
        assert!(pipeline.query.contains(filled), "{filled}\n{}", pipeline.query);
    }
    assert!(pipeline.query.contains(&format!("CAST({} AS BIGINT)", deployment.version)));
    let committed: Vec<_> = world.committed[&name].iter().collect();
    let start: Vec<_> = (0..PARTITIONS).map(|partition| (partition, deployment.start.get(partition))).collect();
    assert_eq!(committed, start, "every partition has its start committed, also one without a closing");
    let sources: Vec<_> = functions().iter().map(|function| function.source.to_string()).collect();
    assert!(world.uploads.iter().all(|upload| *upload == sources), "every query comes with the functions' sources");
}

#[tokio::test]
async fn the_first_version_is_recorded_told_and_started() {
    let fake = Fake::default();
    let deployment = deploy(&fake, &files(), false).await.unwrap();
    let journal = ["compile", "record 1", "announce 1", "commit tally-clicks-1", "create tally-clicks-1"];
    assert_eq!(fake.journal(), journal);
    check_end(&fake, &deployment);
}

#[tokio::test]
async fn what_runs_unchanged_is_left_alone() {
    let fake = running().await;
    assert_eq!(plan(&fake, &files(), false).await.unwrap().lines().count(), 3);
    let deployment = deploy(&fake, &files(), false).await.unwrap();
    assert_eq!((deployment.version, fake.journal().len()), (1, 0));
    check_end(&fake, &deployment);
}

#[tokio::test]
async fn a_changed_pipeline_is_a_new_version_and_so_is_one_again() {
    for (files, again) in [(changed_files(), false), (files(), true)] {
        let fake = running().await;
        let deployment = deploy(&fake, &files, again).await.unwrap();
        let stopped_first = ["compile", "checkpoint tally-clicks-1", "record 2", "announce 2"];
        assert_eq!(fake.journal()[..4], stopped_first);
        check_end(&fake, &deployment);
    }
}

/// Counts do not depend on it, so the digest does not cover it; the pipeline that runs does not know of it.
#[tokio::test]
async fn a_changed_interval_or_address_is_a_new_version() {
    let (set, kafka) = (Duration::from_secs(3), "kafka-1:9092,kafka-2:9092".to_string());
    for (settings, expected) in [
        (
            Settings { checkpoint_interval: set, ..settings() },
            "record version 2: tally-clicks-1 makes a checkpoint every 2s, and every 3s is set",
        ),
        (
            Settings { kafka, ..settings() },
            "record version 2: tally-clicks-1 has Kafka at 127.0.0.1:9092, and kafka-1:9092,kafka-2:9092 is set",
        ),
    ] {
        let fake = running().await;
        let (arroyo, files, functions) = (fake.serve().await, files(), functions());
        let deployer =
            Deployer { arroyo: &arroyo, cluster: &fake, files: &files, functions: &functions, settings: &settings };
        let plan = deployer.plan(false).await.unwrap().to_string();
        assert!(plan.contains(expected), "{plan}");
        let deployment = deployer.deploy(false, &|_: &Step| {}).await.unwrap();
        assert_eq!((deployment.version, fake.world().pipelines[0].state.as_str()), (2, "Stopped"));
        let pipeline = fake.world().pipelines[1].clone();
        assert_eq!(pipeline.interval_micros, settings.checkpoint_interval.as_micros() as u64);
        assert!(pipeline.query.contains(&format!("bootstrap_servers = '{}'", settings.kafka)));
        // Once.
        assert_eq!(deployer.deploy(false, &|_: &Step| {}).await.unwrap().version, 2);
    }
}

/// What was deployed under another name would go on beside it.
#[tokio::test]
async fn another_name_is_refused_while_pipelines_of_the_old_one_run() {
    let fake = running().await;
    let renamed = || Settings { name: "other".into(), ..settings() };
    let arroyo = fake.serve().await;
    let error = deploy_to(&arroyo, &fake, &files(), false, renamed()).await.unwrap_err().to_string();
    let expected =
        "pipeline tally-clicks-1 (pl_0, Running) counts the same log, and its name does not begin with other-: ";
    assert!(error.starts_with(expected), "{error}");
    assert_eq!((fake.journal(), fake.world().pipelines[0].state.as_str()), (vec![], "Running"));
    // Those of another log, or that write something else, are not looked at.
    let query = fake.world().pipelines[0].query.clone();
    let others = [
        query.replace(&fake::log_id().to_string(), "elsewhere"),
        query.replace("topic = 'raw_clicks'", "topic = 'trial'"),
        "SELECT 1".to_string(),
    ];
    fake.world().pipelines[0].state = "Stopped".into();
    fake.world().pipelines[0].running_desired = false;
    for (number, query) in others.into_iter().enumerate() {
        let mut other = fake.world().pipelines[0].clone();
        (other.id, other.name, other.state) = (format!("pl_{}", number + 1), "trial-clicks-1".into(), "Running".into());
        other.query = query;
        fake.world().pipelines.push(other);
    }
    let deployment = deploy_to(&arroyo, &fake, &files(), false, renamed()).await.unwrap();
    assert_eq!((deployment.version, fake.world().pipelines[4].name.as_str()), (2, "other-clicks-2"));
}

/// A repair that began is given up only where that is asked for, and is said.
#[tokio::test]
async fn a_repair_is_not_given_up_unasked() {
    let fake = running().await;
    fake.world().repair = Some("repair 7".into());
    // What is recorded already goes on beside it.
    assert_eq!(deploy(&fake, &files(), false).await.unwrap().version, 1);
    let error = deploy(&fake, &changed_files(), false).await.unwrap_err().to_string();
    assert!(
        error.starts_with("repair 7 began and did not end, and version 2 would give it up: run `tally repair`"),
        "{error}"
    );
    assert_eq!((fake.journal(), fake.world().pipelines[0].state.as_str()), (vec![], "Running"));
    let shown = plan(&fake, &changed_files(), true).await.unwrap();
    assert!(shown.contains("give up repair 7, which began and did not end, and record version 2: "), "{shown}");
    let deployment = deploy(&fake, &changed_files(), true).await.unwrap();
    assert!(fake.journal().contains(&"give up repair 7".to_string()));
    check_end(&fake, &deployment);
    // Nor by a version that is made since a pipeline broke.
    fake.world().repair = Some("repair 8".into());
    fake.world().pipelines.last_mut().unwrap().state = "Failed".into();
    let error = deploy(&fake, &changed_files(), false).await.unwrap_err().to_string();
    assert!(error.starts_with("repair 8 began"), "{error}");
}

/// Also one that no other engine is given.
#[tokio::test]
async fn a_changed_function_is_a_new_version() {
    let (fake, files, settings) = (running().await, files(), settings());
    let arroyo = fake.serve().await;
    let mut functions = functions();
    let changed = CLAIM_CLICK.replace("600s", "700s");
    assert_ne!(changed, CLAIM_CLICK);
    functions.retain(|function| function.name != "claim_click");
    functions.push(Source { name: "claim_click", source: Box::leak(changed.into_boxed_str()) });
    let deployer =
        Deployer { arroyo: &arroyo, cluster: &fake, files: &files, functions: &functions, settings: &settings };
    let plan = deployer.plan(false).await.unwrap();
    assert!(plan.to_string().contains("record version 2: SQL, a function or a setting has changed"), "{plan}");
}

#[tokio::test]
async fn a_plan_shows_its_steps_and_changes_nothing() {
    let fake = running().await;
    let shown = plan(&fake, &changed_files(), false).await.unwrap();
    let expected = "\
version 2
  pipelines/clicks.sql as tally-clicks-2
  1. compile bot_reason, device_class, claim_click
  2. stop tally-clicks-1 (pl_0, Running) with a last checkpoint
  3. record version 2: SQL, a function or a setting has changed
  4. tell the claims of version 2 and its start
  5. commit the start as offsets of consumer group tally-clicks-2, and create pipeline tally-clicks-2
  6. wait until it runs, makes a checkpoint, and a row comes from each of 4 partitions";
    assert_eq!(shown, expected);
    assert!(plan(&fake, &files(), true).await.unwrap().contains("record version 2: unchanged, deployed again"));
    assert_eq!(fake.journal(), [""; 0]);
}

/// Whatever is asked for, of Arroyo or of the others: it fails once, undone or done, and a second run mends it.
#[tokio::test]
async fn a_deployment_that_broke_off_anywhere_is_carried_on() {
    let steps = {
        let fake = running().await;
        fake.set(Fault::None);
        deploy(&fake, &changed_files(), false).await.unwrap();
        fake.asked()
    };
    assert!(steps > 20, "{steps}");
    for number in 0..steps {
        for fault in [Fault::Refuse(number), Fault::LoseAnswer(number)] {
            for (files, again) in [(changed_files(), false), (files(), true)] {
                let fake = running().await;
                fake.set(fault);
                let first = deploy(&fake, &files, again).await;
                // The fake loses no answer to a mere look at the rest of the system.
                let noticed = first.is_err() || fake.asked() <= number;
                assert!(noticed || matches!(fault, Fault::LoseAnswer(_)), "{fault:?}: {first:?}");
                fake.set(Fault::None);
                let deployment =
                    deploy(&fake, &files, again).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
                check_end(&fake, &deployment);
            }
        }
    }
}

/// What cannot be planned or compiled is said at its place, and the old version goes on.
#[tokio::test]
async fn a_broken_pipeline_stops_nothing() {
    let cases = [
        (
            Fault::BadSql("validate_syntax"),
            "pipelines/clicks.sql:35:1: Arroyo: Expected: SELECT, VALUES, or a subquery",
        ),
        (Fault::BadSql("validate_unknown_column"), "No field named publisher_id. Did you mean 'judged.publisher_idd'?"),
        (Fault::BadSql("validate_unknown_udf"), "Arroyo: Error during planning: Invalid function 'bot_reason'"),
        (Fault::LostEdge, "nothing leads into node 10 (key_10: ArrowKey<_>)"),
        (Fault::BadFunction, " --> udfs/src/bot_reason.rs:3:26\n"),
    ];
    for (fault, expected) in cases {
        let fake = running().await;
        fake.set(fault);
        let error = deploy(&fake, &changed_files(), false).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{fault:?}\n{error}");
        assert_eq!(fake.journal(), [""; 0], "{fault:?}");
        assert_eq!(fake.world().pipelines[0].state, "Running");
    }
    // At its place in the file: the column's first use in the statement that reads the relation it is missing from, and the
    // function's call.
    let fake = running().await;
    for (name, begins, found) in [
        ("validate_unknown_column", "CREATE VIEW verdicts", "publisher_id, clicked,\n  clicked_at"),
        ("validate_unknown_udf", "CREATE VIEW reasons", "bot_reason(\"userAgent\")"),
    ] {
        fake.set(Fault::BadSql(name));
        let error = deploy(&fake, &changed_files(), false).await.unwrap_err();
        let DeployError::Sql(error) = error else { panic!("{error}") };
        let text = changed_sql();
        let from = text.find(begins).unwrap();
        let before = &text[..from + text[from..].find(found).unwrap()];
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        assert_eq!((error.line, error.column), (before.lines().count() as u64, column as u64), "{error}");
    }
}

/// A refusal says that functions were compiled only if it is about the query.
#[tokio::test]
async fn functions_that_were_not_compiled_stop_nothing() {
    for reason in ["Failed to create pipeline: no compiler", "Failed to plan query:\n * table 'claimedd' not found", ""]
    {
        let fake = running().await;
        fake.set(Fault::RefusesToCompile(reason));
        let error = deploy(&fake, &changed_files(), false).await.unwrap_err().to_string();
        assert_eq!(error, format!("POST /api/v1/pipelines was answered with 400 Bad Request: {reason}"));
        assert_eq!(fake.journal(), [""; 0]);
        assert_eq!(fake.world().pipelines[0].state, "Running");
    }
}

#[tokio::test]
async fn a_query_refused_at_its_creation_is_mended_by_the_next_run() {
    let fake = running().await;
    fake.set(Fault::BadSqlAtCreation);
    let error = deploy(&fake, &changed_files(), false).await.unwrap_err().to_string();
    assert!(
        error.contains("pipelines/clicks.sql: Arroyo: Failed to plan query:\n * table 'claimedd' not found"),
        "{error}"
    );
    fake.set(Fault::None);
    let deployment = deploy(&fake, &changed_files(), false).await.unwrap();
    assert_eq!(deployment.version, 2, "the recorded version is started");
    check_end(&fake, &deployment);
}

#[tokio::test]
async fn a_topic_made_anew_is_not_deployed_on() {
    let fake = running().await;
    fake.world().deployments[0].log_id = click::LogId::from_bytes([8; 16]);
    let error = deploy(&fake, &files(), false).await.unwrap_err().to_string();
    assert!(error.starts_with("topic clicks was made anew: version 1 is of 08080808-"), "{error}");
}

#[tokio::test]
async fn no_arroyo_or_another_server_is_said() {
    let soon = Duration::from_millis(500);
    let short = Deadlines { connect: soon, answer: soon, build: soon };
    for (address, expected) in [
        ("arroyo:5115", "Arroyo's address \"arroyo:5115\": "),
        ("ftp://arroyo", "must begin with http:// or https://"),
        ("", "looks like http://127.0.0.1:5115"),
        ("http://arroyo/?a=b", "cannot have a query"),
    ] {
        let error = Arroyo::new(address, short).unwrap_err().to_string();
        assert!(error.contains(expected), "{address}: {error}");
    }
    let fake = Fake::default();
    // Nothing listens there any more.
    let port = {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let gone = Arroyo::new(&format!("http://127.0.0.1:{port}"), short).unwrap();
    let error = deploy_to(&gone, &fake, &files(), false, settings()).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("GET http://127.0.0.1:{port}/api/v1/ping: ")), "{error}");

    fake.set(Fault::Silence);
    let impatient = fake.serve_within(short).await;
    let error = deploy_to(&impatient, &fake, &files(), false, settings()).await.unwrap_err().to_string();
    assert!(error.ends_with("no answer within 500ms"), "{error}");
    fake.set(Fault::OtherServer);
    let arroyo = fake.serve().await;
    let error = deploy_to(&arroyo, &fake, &files(), false, settings()).await.unwrap_err().to_string();
    assert!(error.starts_with("GET /api/v1/ping was answered with 200 OK and what is not understood"), "{error}");
    assert!(error.ends_with(r#"{"hello":"world"}"#), "{error}");
    fake.set(Fault::Refuse(0));
    let error = deploy_to(&arroyo, &fake, &files(), false, settings()).await.unwrap_err().to_string();
    assert_eq!(error, "GET /api/v1/ping was answered with 500 Internal Server Error: Something went wrong");
    assert_eq!(fake.journal(), [""; 0]);
}

#[tokio::test]
async fn settings_are_checked_before_anything_is_asked() {
    let (fake, files, functions) = (Fake::default(), files(), functions());
    let arroyo = fake.serve().await;
    for (settings, expected) in [
        (Settings { name: "a-b".into(), ..settings() }, "name is \"a-b\": it is made of letters, digits and _"),
        (Settings { kafka: "a'b:1".into(), ..settings() }, "kafka is \"a'b:1\": it is a list of host:port"),
        (
            Settings { checkpoint_interval: Duration::from_secs(1), ..settings() },
            "checkpoint interval is \"1s\": it must be 2s",
        ),
        (
            Settings { start_wait: Duration::from_secs(2), ..settings() },
            "start wait is \"2s\": it must be longer than the checkpoint interval",
        ),
    ] {
        let deployer =
            Deployer { arroyo: &arroyo, cluster: &fake, files: &files, functions: &functions, settings: &settings };
        let error = deployer.plan(false).await.unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let files = PipelineFiles::one("pipelines/clicks by ad.sql", SQL);
    let error = plan(&fake, &files, false).await.unwrap_err().to_string();
    assert!(error.starts_with("pipeline file pipelines/clicks by ad.sql: its name"), "{error}");
}

/// Whenever a second one begins, it carries on, makes a version of its own after it, or is told that it was too late; and so
/// is the first.
#[tokio::test]
async fn of_two_deployments_at_once_one_counts() {
    let steps = {
        let fake = running().await;
        fake.set(Fault::None);
        deploy(&fake, &changed_files(), false).await.unwrap();
        fake.asked()
    };
    let (mut told, mut both) = (0, 0);
    for again in [false, true] {
        for begins in 0..steps {
            let fake = running().await;
            let arroyo = fake.serve().await;
            fake.set(Fault::None);
            let is_over = std::cell::Cell::new(false);
            let files = changed_files();
            let first = async {
                let first = deploy_to(&arroyo, &fake, &files, false, settings()).await;
                is_over.set(true);
                first
            };
            let second = async {
                while fake.asked() < begins && !is_over.get() {
                    tokio::task::yield_now().await;
                }
                // It sees a server of its own, as a process of its own would.
                let arroyo = fake.serve().await;
                deploy_to(&arroyo, &fake, &files, again, settings()).await
            };
            let (first, second) = tokio::join!(first, second);
            both += usize::from(first.is_ok() && second.is_ok());
            // At the very same moment both give way, and a third run mends it.
            let neither = first.is_err() && second.is_err();
            let same_time = |ended: &Result<_, _>| matches!(ended, Err(DeployError::SameTime { .. }));
            assert!(!neither || (same_time(&first) && same_time(&second)), "{begins}: {first:?}, {second:?}");
            for error in [&first, &second].into_iter().filter_map(|ended| ended.as_ref().err()) {
                let error = error.to_string();
                let is_said =
                    ["comes next", "at the same time", "it is Stopped"].iter().any(|said| error.contains(said));
                assert!(is_said, "{begins}: {error}");
                told += 1;
            }
            {
                let world = fake.world();
                let (versions, most) = (world.deployments.len(), if again { 3 } else { 2 });
                assert!((2..=most).contains(&versions), "{begins}: {versions} versions");
                let working = world.pipelines.iter().filter(|pipeline| pipeline.state != "Stopped").count();
                assert_eq!(working, usize::from(!neither), "{begins}: {:?}", world.journal);
            }
            let deployment = deploy(&fake, &files, false).await.unwrap();
            check_end(&fake, &deployment);
        }
    }
    assert!(told > 0 && both > 0, "{told} were told, {both} pairs ended well");
}
