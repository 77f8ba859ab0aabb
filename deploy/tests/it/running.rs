//! What a deployment waits for: pipelines that hang, restart, fail, or run.

use super::*;

#[tokio::test]
async fn a_pipeline_that_hangs_in_its_checkpoints_is_stopped_without() {
    let fake = running().await;
    let arroyo = fake.serve().await;
    fake.set(Fault::HangsInCheckpoints);
    let error = deploy_to(&arroyo, &fake, &files(), true, impatient()).await.unwrap_err().to_string();
    assert_eq!(fake.journal()[1..3], ["checkpoint tally-clicks-1", "immediate tally-clicks-1"]);
    assert!(error.contains("version 2 is not running after 2.1s: tally-clicks-2 has made no checkpoint"), "{error}");
    fake.set(Fault::HangsForGood);
    let error = deploy_to(&arroyo, &fake, &files(), true, impatient()).await.unwrap_err().to_string();
    assert_eq!(error, "pipeline tally-clicks-2 (pl_1) did not stop within 200ms: it is CheckpointStopping");
    fake.set(Fault::None);
    let deployment = deploy(&fake, &files(), true).await.unwrap();
    check_end(&fake, &deployment);
}

#[tokio::test]
async fn a_restart_before_the_first_checkpoint_is_deployed_again() {
    let fake = running().await;
    fake.set(Fault::Restarts(2));
    let deployment = deploy(&fake, &changed_files(), false).await.unwrap();
    assert_eq!(deployment.version, 4);
    check_end(&fake, &deployment);
    fake.set(Fault::Restarts(3));
    let error = deploy(&fake, &files(), false).await.unwrap_err().to_string();
    let expected = "pipeline tally-clicks-7 (pl_6) was restarted before its first checkpoint, 3 times in a row: it may \
                    have skipped records: task failed: unknown error: cannot send; Aync UDF claim_click has shut down";
    assert_eq!(error.split(" (2026-").next(), Some(expected), "{error}");
}

#[tokio::test]
async fn a_pipeline_that_fails_says_why() {
    let fake = running().await;
    fake.set(Fault::Fails);
    let error = deploy(&fake, &changed_files(), false).await.unwrap_err().to_string();
    assert!(error.starts_with("pipeline tally-clicks-2 (pl_1) failed: out of memory: task failed: unknown"), "{error}");
    fake.set(Fault::None);
    let shown = plan(&fake, &changed_files(), false).await.unwrap();
    assert!(shown.contains("record version 3: tally-clicks-2 has failed"), "{shown}");
    let deployment = deploy(&fake, &changed_files(), false).await.unwrap();
    check_end(&fake, &deployment);
}

#[tokio::test]
async fn running_means_a_row_from_every_partition() {
    let fake = Fake::default();
    fake.set(Fault::SilentPartition(2));
    let arroyo = fake.serve().await;
    let error = deploy_to(&arroyo, &fake, &files(), false, impatient()).await.unwrap_err().to_string();
    assert!(error.contains("no row has come from partition 2"), "{error}");
    fake.set(Fault::None);
    let deployment = deploy(&fake, &files(), false).await.unwrap();
    assert_eq!(deployment.version, 1);
    check_end(&fake, &deployment);
}

/// What was there when the wait began proves nothing, of a pipeline that is left alone or goes on from its checkpoint.
#[tokio::test]
async fn a_pipeline_that_hangs_is_not_running_whatever_it_did_before() {
    for is_stopped in [false, true] {
        for (fault, expected) in [
            (Fault::HangsInCheckpoints, "tally-clicks-1 has made no new checkpoint; "),
            (Fault::StopsWriting(2), "no new row has come from partition 2 (heartbeats come from running redirects); "),
        ] {
            let fake = running().await;
            let arroyo = fake.serve().await;
            // It was restarted since its first checkpoint, which does no harm.
            fake.world().pipelines[0].run_id = 3;
            fake.world().pipelines[0].running_desired = !is_stopped;
            if is_stopped {
                fake.world().pipelines[0].state = "Stopped".into();
            }
            fake.set(fault);
            let error = deploy_to(&arroyo, &fake, &files(), false, impatient()).await.unwrap_err().to_string();
            let shown = format!(
                "version 1 is not running after 2.1s: {expected}the last error of tally-clicks-1: task failed: "
            );
            assert!(error.starts_with(&shown), "{fault:?}: {error}");
            assert!(error.ends_with("claim_click has shut down (2026-11-24T08:17:02.000Z)"), "{error}");
            fake.set(Fault::None);
            let deployment = deploy(&fake, &files(), false).await.unwrap();
            assert_eq!(deployment.version, 1, "the same version works again");
            check_end(&fake, &deployment);
        }
    }
}

#[tokio::test]
async fn a_pipeline_stopped_by_hand_goes_on_from_its_checkpoint() {
    let fake = running().await;
    fake.world().pipelines[0].state = "Stopped".into();
    fake.world().pipelines[0].running_desired = false;
    let deployment = deploy(&fake, &files(), false).await.unwrap();
    assert_eq!((deployment.version, fake.journal()), (1, vec!["none tally-clicks-1".to_string()]));
    check_end(&fake, &deployment);
    // Without a checkpoint it would read on behind what it had read.
    fake.world().pipelines[0].state = "Stopped".into();
    fake.world().pipelines[0].running_desired = false;
    fake.world().pipelines[0].checkpoints.clear();
    let shown = plan(&fake, &files(), false).await.unwrap();
    assert!(shown.contains("record version 2: tally-clicks-1 stopped before its first checkpoint"), "{shown}");
    // Gone, it cannot be made anew: what it counted is final by now.
    fake.world().pipelines[0].name = "someone-elses".into();
    fake.set(Fault::None);
    let mut other = fake.world().pipelines[0].clone();
    (other.id, other.name, other.run_id) = ("pl_9".into(), "rows-1".into(), 1);
    fake.world().pipelines.push(other);
    let shown = plan(&fake, &files(), false).await.unwrap();
    assert!(shown.contains("tally-clicks-1 is gone from Arroyo, and rows of its version are there"), "{shown}");
}

#[tokio::test]
async fn of_two_with_one_name_one_is_kept() {
    let fake = running().await;
    let mut twin = fake.world().pipelines[0].clone();
    twin.id = "pl_1".into();
    fake.world().pipelines.push(twin);
    let deployment = deploy(&fake, &files(), false).await.unwrap();
    assert_eq!(fake.journal(), ["checkpoint tally-clicks-1"]);
    assert_eq!(fake.world().pipelines[1].state, "Stopped");
    check_end(&fake, &deployment);
}
