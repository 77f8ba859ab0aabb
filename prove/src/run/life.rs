//! A life, second by second.

use super::Draw;
use super::{LATENESS_MS, Run, SLACK_MS, STEP_MS, T0, ensure_expired};
use crate::browsers::Moment;
use crate::fate::Fault;
use crate::generator::Through;
use crate::judge::Judge;
use crate::reports::Reports;
use crate::site::{Outcome, Site, Word};
use crate::tables::Tables;
use anyhow::{Context, Result};
use click::Millis;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rand::Rng;
use std::time::Duration;
use tokio::task::JoinError;

/// Requests of a step that are under way at once.
const AT_ONCE: usize = 32;
/// The clock goes on by so much at most before a request comes in that nobody waits for: minutes of it, and a stand-still.
const UNWATCHED_MS: i64 = 90 * STEP_MS + 80_000;
/// A heartbeat is in every partition of the log that had nothing else for a second, and its time never goes back: when a
/// clock does, what comes from a spool is that much older than its click at most.
const BACK_MS: i64 = 3 * STEP_MS;

/// How a life is going.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Going {
    On,
    Over,
}

/// What an outcome means in a life with a fault, or after result topics expired.
fn going(outcome: Outcome, fault: Fault, expired: bool) -> Result<Going> {
    match outcome {
        Outcome::Done => Ok(Going::On),
        // A part that failed is opened again, which here is the next life.
        Outcome::Failed(_) if fault.is_of_disk() => Ok(Going::Over),
        Outcome::Failed(why) if expired => ensure_expired(&why).map(|()| Going::Over),
        Outcome::Failed(why) => anyhow::bail!("it failed, and nothing keeps it from it: {why}"),
        Outcome::Dead if fault.is_none() || fault.is_of_disk() => anyhow::bail!("it died, and nothing kills it"),
        Outcome::Dead => Ok(Going::Over),
    }
}

impl Run<'_> {
    /// A second of the world. Something may fail without a word only where a fault is about.
    pub(super) async fn step(
        &mut self,
        site: &mut Site,
        step: i64,
        leap_ms: Option<i64>,
        stands: Option<(u64, i64)>,
    ) -> Result<Going> {
        let mut rng = self.rng(Draw::Words, step);
        self.pass(STEP_MS);
        if let Some(ms) = leap_ms {
            // A signature is of a time: nobody is under way with one while that leaps.
            while let Some(sent) = self.waiting.next().await {
                answered(sent)?;
            }
            self.pass(ms);
        }
        for word in [Word::Clock(self.now), Word::Beat] {
            if self.tell(site, word).await? == Going::Over {
                return Ok(Going::Over);
            }
        }
        let moment = self.moment(stands.map_or(0, |(_, passes_ms)| passes_ms));
        let mut quick = FuturesUnordered::new();
        while let Some(request) = self.requests.next_if(|request| request.at_ms < step * STEP_MS) {
            let is_slow = matches!(request.through, Through::Slow(_));
            let sending = tokio::spawn(self.browsers.send(&site.redirects, moment, request));
            if is_slow {
                self.waiting.push(sending);
            } else {
                quick.push(sending);
            }
            if quick.len() >= AT_ONCE
                && let Some(sent) = quick.next().await
            {
                answered(sent)?;
            }
        }
        if let Some((ms, passes_ms)) = stands {
            // Some of the requests are not there yet, some wait for the disk.
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..5))).await;
            self.pass(passes_ms);
            let outcome = site.stand_still(ms, self.now).await?;
            if self.going(site, "standing still", outcome).await? == Going::Over {
                return Ok(Going::Over);
            }
        }
        // What else goes on does so at the same time.
        let word = match rng.random_range(0..self.idle) {
            0..6 => Some(Word::Settle),
            6..9 => Some(Word::Checkpoint),
            9..11 => Some(Word::Retain),
            11 => Some(Word::Send),
            12..14 => Some(Word::Tidy),
            _ => None,
        };
        let word = self.life.word.or(word);
        let mut going = match word {
            Some(Word::Send) => self.send_aside(site).await?,
            Some(word) => self.tell(site, word).await?,
            None => Going::On,
        };
        while let Some(sent) = quick.next().await {
            answered(sent)?;
        }
        if going == Going::On && word == Some(Word::Settle) {
            going = self.watch(site).await?;
        }
        if going == Going::On && self.expires && rng.random_bool(0.006) {
            self.again = true;
            self.done.expired += 1;
            *self.done.census.faults.entry("expired results").or_default() += 1;
            self.done.fates.push(format!("result topics expired at {}", self.now));
            return self.tell(site, Word::Expire).await;
        }
        if going == Going::On && rng.random_bool(0.02) {
            // What is answered while the reports are read may be on them or not.
            let known = self.browsers.judge().clone();
            if self.tell(site, Word::Settle).await? == Going::On {
                return self.look(site, &known).await;
            }
            return Ok(Going::Over);
        }
        Ok(going)
    }

    fn moment(&self, passes_ms: i64) -> Moment {
        Moment {
            now: self.now,
            latest: self.latest,
            passes_ms,
            unwatched_ms: UNWATCHED_MS,
            back_ms: if self.goes_back { BACK_MS } else { 0 },
            skew_ms: self.life.skew_ms,
            takes_all: !self.life.fault.is_of_disk() && self.life.fault.is_none(),
        }
    }

    /// Sends by hand what the spool keeps aside.
    pub(super) async fn send_aside(&mut self, site: &mut Site) -> Result<Going> {
        let kept = self.aside()?;
        let going = self.tell(site, Word::Send).await?;
        if going == Going::On {
            self.done.census.aside += kept as u64;
        }
        Ok(going)
    }

    /// How many clicks are kept aside.
    pub(super) fn aside(&self) -> Result<usize> {
        let spool = self.disk.root.join("spool");
        if !spool.join("aside").is_dir() {
            return Ok(0);
        }
        let kept = redirect::spool::aside::list(&spool).context("what is kept aside")?;
        Ok(kept.iter().map(|(_, clicks)| clicks.len()).sum())
    }

    pub(super) async fn tell(&mut self, site: &mut Site, word: Word) -> Result<Going> {
        let outcome = site.tell(word).await?;
        self.going(site, &word.to_string(), outcome).await
    }

    async fn going(&mut self, site: &mut Site, what: &str, outcome: Outcome) -> Result<Going> {
        match going(outcome, self.life.fault, self.again) {
            Ok(going) => Ok(going),
            Err(error) => {
                let said = site.last_words().await;
                Err(error.context(format!("`{what}`: it said {said}")))
            }
        }
    }

    /// The reports, against the oracle.
    pub(super) async fn look(&mut self, site: &Site, known: &Judge) -> Result<Going> {
        match self.reports(site).cells().await {
            Ok((cells, _)) => known.check(&cells).map_err(anyhow::Error::msg).context("provisional")?,
            Err(error) => return self.gone(error),
        }
        self.watch(site).await
    }

    /// What is final, against what was.
    pub(super) async fn watch(&mut self, site: &Site) -> Result<Going> {
        let through = match self.reports(site).complete_through().await {
            Ok(through) => through.minute(),
            Err(error) => return self.gone(error),
        };
        let closed = Tables::of(&self.disk.root).closed(through)?;
        self.finality.look(through, closed).map_err(anyhow::Error::msg).context("finality")?;
        Ok(Going::On)
    }

    /// There is no report: the site died meanwhile, or the reports are wrong.
    fn gone(&self, error: anyhow::Error) -> Result<Going> {
        let is_gone = error.downcast_ref::<reqwest::Error>().is_some();
        if is_gone && going(Outcome::Dead, self.life.fault, false).is_ok() { Ok(Going::Over) } else { Err(error) }
    }

    pub(super) fn reports(&self, site: &Site) -> Reports<'_> {
        let from = Millis::new(T0).plus(-2 * 3_600_000).minute().start();
        let to = self.latest.plus(600_000 + LATENESS_MS + SLACK_MS).minute().end();
        Reports { client: self.browsers.client(), address: site.reports, from, to }
    }
}

pub(super) fn answered(sent: Result<Result<(), String>, JoinError>) -> Result<()> {
    sent?.map_err(anyhow::Error::msg)
}

#[test]
fn whoever_fails_needs_a_fault() {
    let failed = |why: &str| Outcome::Failed(why.into());
    let stands = Fault::Stands { ms: 1, passes_ms: 1 };
    let (dies, full) = (Fault::Change(1), Fault::Full(1, 1));
    let on = |outcome: Outcome, fault| matches!(going(outcome, fault, false), Ok(Going::On));
    let over = |outcome: Outcome, fault, expired| matches!(going(outcome, fault, expired), Ok(Going::Over));
    assert!([Fault::None, stands, dies, full].into_iter().all(|fault| on(Outcome::Done, fault)));
    for fault in [Fault::None, stands] {
        assert!(going(failed("x"), fault, false).is_err() && going(Outcome::Dead, fault, false).is_err());
        assert!(over(failed("topic raw_clicks expired"), fault, true));
        assert!(going(failed("x"), fault, true).is_err(), "it has to say what expired");
    }
    assert!(over(Outcome::Dead, dies, false) && going(failed("x"), dies, false).is_err());
    assert!(over(failed("x"), full, false) && going(Outcome::Dead, full, false).is_err());
}
