//! How a deployment says that it is doing.

use super::fake::{Fake, Fault, WRITTEN, log_id};
use super::{files, functions, running, settings};
use click::{LogId, Millis};
use deploy::{Deployer, Status};

/// When the recorded checkpoint was completed, in milliseconds.
const COMPLETED: i64 = WRITTEN;
const INTERVAL: i64 = 2_000;

async fn status(fake: &Fake, now: i64) -> Option<Status> {
    let (arroyo, files, functions, settings) = (fake.serve().await, files(), functions(), settings());
    let deployer =
        Deployer { arroyo: &arroyo, cluster: fake, files: &files, functions: &functions, settings: &settings };
    deployer.status(Millis::new(now)).await.unwrap()
}

#[tokio::test]
async fn without_a_deployment_there_is_no_status() {
    assert_eq!(status(&Fake::default(), COMPLETED).await, None);
}

#[tokio::test]
async fn it_shows_state_checkpoints_errors_and_lag() {
    let status = status(&running().await, COMPLETED + 1).await.unwrap();
    assert!(status.is_healthy(), "{status}");
    let shown = status.to_string();
    let expected = "\
version 1
tally-clicks-1 (pl_0): Running, start 1, checkpoint 1 completed 2026-11-24T08:15:20.522Z
  error 2026-11-24T08:17:02.000Z in async_udf_5: task failed: unknown error: cannot send; Aync UDF claim_click has shut down";
    assert!(shown.starts_with(expected), "{shown}");
    assert!(shown.ends_with("\nlag in records: 0: 10 1: 9 2: 8 3: 7"), "{shown}");
    assert_eq!(status.pipelines[0].errors.len(), 5, "of those recorded the newest are shown");
}

#[tokio::test]
async fn three_intervals_without_a_checkpoint_are_a_problem_whatever_the_state() {
    let fake = running().await;
    fake.set(Fault::HangsInCheckpoints);
    assert!(status(&fake, COMPLETED + 3 * INTERVAL).await.unwrap().is_healthy());
    let late = status(&fake, COMPLETED + 3 * INTERVAL + 1).await.unwrap();
    let problem =
        "tally-clicks-1 has completed no checkpoint for 6.0 s, more than 3 intervals of 2.0 s; Arroyo calls it Running";
    assert_eq!(late.problems, [problem]);
    assert!(late.to_string().ends_with(&format!("\nproblem: {problem}")));
    // The same where there never was one.
    fake.world().pipelines[0].checkpoints.clear();
    let never = status(&fake, COMPLETED * 2).await.unwrap();
    assert!(never.problems[0].starts_with("tally-clicks-1 has completed no checkpoint for "), "{never}");
}

#[tokio::test]
async fn what_is_missing_over_or_left_running_is_a_problem() {
    let fake = running().await;
    fake.set(Fault::SilentPartition(3));
    let silent = status(&fake, COMPLETED).await.unwrap();
    assert_eq!(silent.problems, ["no row of version 1 has come from partition 3"]);
    assert!(silent.to_string().contains("3: no row"), "{silent}");

    fake.set(Fault::None);
    let mut older = fake.world().pipelines[0].clone();
    (older.id, older.name) = ("pl_1".into(), "tally-clicks-0".into());
    fake.world().pipelines.push(older);
    fake.world().pipelines[0].state = "Failed".into();
    let problems = status(&fake, COMPLETED).await.unwrap().problems;
    assert_eq!(problems, ["tally-clicks-1 is Failed", "tally-clicks-0 (pl_1) is not of version 1, and Running"]);

    fake.world().pipelines[1].name = "older-clicks-1".into();
    let problems = status(&fake, COMPLETED).await.unwrap().problems;
    assert_eq!(problems[1], "older-clicks-1 (pl_1) counts the same log under another name, and is Running");

    fake.world().pipelines.remove(0);
    let problems = status(&fake, COMPLETED).await.unwrap().problems;
    assert!(problems.contains(&"tally-clicks-1 is not there".to_string()), "{problems:?}");
}

#[tokio::test]
async fn a_partition_that_stands_still_with_records_that_wait_is_a_problem() {
    let fake = running().await;
    let silent = async |now: i64| {
        let problems = status(&fake, now).await.unwrap().problems;
        problems.into_iter().filter(|problem| problem.starts_with("no row")).collect::<Vec<_>>()
    };
    assert_eq!(silent(WRITTEN + 60_000).await, [""; 0]);
    let problems = silent(WRITTEN + 61_500).await;
    assert_eq!(problems.len(), 4, "{problems:?}");
    assert_eq!(problems[3], "no row has come from partition 3 for 61.5 s, and 7 of its records wait");
}

/// Rows that go further than the log show no lag.
#[tokio::test]
async fn a_topic_made_anew_is_a_problem() {
    let fake = running().await;
    fake.world().deployments[0].log_id = LogId::from_bytes([8; 16]);
    let problems = status(&fake, COMPLETED).await.unwrap().problems;
    let ids = [LogId::from_bytes([8; 16]), log_id()].map(|id| id.to_string());
    let expected = format!("topic clicks was made anew: version 1 is of {}, and the topic is {} now.", ids[0], ids[1]);
    assert!(problems.len() == 1 && problems[0].starts_with(&expected), "{problems:?}");
    assert!(problems[0].ends_with("`tally topics` says what can be done"), "{problems:?}");
}
