//! The end of a life, what comes after it, and the end of all of them.

use super::life::answered;
use super::{Draw, LATENESS_MS, Run, SLACK_MS};
use crate::damage::Damage;
use crate::fate::{Fate, Fault};
use crate::judge::Cells;
use crate::site::{Outcome, Site, StillBorn, Word};
use crate::tables::{self, Row, Tables};
use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use std::collections::HashMap;

/// How often the spool may need virtual time to go on before it is empty.
const DRAINS_MAX: usize = 20;

impl Run<'_> {
    /// The end of a life, and what comes after it.
    pub(super) async fn bury(&mut self, site: Site, fate: Fate, told: &mut String) -> Result<()> {
        let said = site.kill().await;
        ensure_calm(fate.fault, &said)?;
        while let Some(sent) = self.waiting.next().await {
            answered(sent)?;
        }
        self.end(fate, told)
    }

    pub(super) fn end(&mut self, fate: Fate, told: &mut String) -> Result<()> {
        let seen = self.disk.seen()?;
        for (kind, times) in seen.syncs {
            *self.done.syncs.entry(kind).or_default() += times;
        }
        for (point, times) in self.disk.take_passes()? {
            *self.done.census.passes.entry(point).or_default() += times;
        }
        self.done.skipped += seen.skipped;
        self.done.idle = if seen.skipped > 0 { 0 } else { self.done.idle + 1 };
        if let Some(died) = seen.died {
            told.push_str(&format!(" [{died}]"));
        }
        if let Some(cut) = fate.power_cut {
            let gone = self.disk.cut_power(cut, &mut self.rng(Draw::Cut, 0))?;
            self.done.changes_gone += gone;
            told.push_str(&format!(" [{gone} changes gone]"));
        }
        self.pass(fate.away_ms + fate.clock_ms);
        Ok(())
    }

    /// What lies on disk now, with one bit flipped or an end missing, is refused by name, or says what is right.
    pub(super) async fn damage(&mut self) -> Result<()> {
        let dir = self.disk.root.with_file_name("damaged");
        let damage = Damage::of(self.disk, &dir, &mut self.rng(Draw::Damage, 1))?;
        if let Some(damage) = &damage {
            let what = self.try_damaged(damage).await.with_context(|| damage.to_string())?;
            *self.done.census.damaged.entry(damage.store).or_default().entry(what).or_default() += 1;
            self.done.fates.push(format!("{damage}: {what}"));
        }
        std::fs::remove_dir_all(&dir).context("the damaged copy")
    }

    async fn try_damaged(&self, damage: &Damage) -> Result<&'static str> {
        let named = |said: &str| ensure_named(damage, said);
        let mut site = match Site::start(self.setting, &damage.disk, self.plain_start(false, Fault::None)).await? {
            Ok(site) => site,
            Err(StillBorn(said)) => return named(&said).map(|()| "refused"),
        };
        let outcome = site.tell(Word::Settle).await?;
        let read = match outcome {
            Outcome::Done => Some(self.reports(&site).cells().await),
            _ => None,
        };
        let said = site.kill().await;
        match (outcome, read) {
            (Outcome::Failed(why), _) => named(&why).map(|()| "stopped"),
            (Outcome::Done, Some(Ok((cells, _)))) => {
                self.browsers.judge().check(&cells).map_err(anyhow::Error::msg).map(|()| "not needed")
            }
            (Outcome::Done, Some(Err(error))) => {
                // A report that cannot be made says so; which file it is stands in the log.
                named(&format!("{error:#} {said}")).map(|()| "no report")
            }
            _ => named(&said).map(|()| "died"),
        }
    }

    /// Everything that is held or spooled arrives.
    async fn drain(&mut self, site: &mut Site) -> Result<()> {
        for _ in 0..DRAINS_MAX {
            // What was handed over is held for so long at most.
            self.pass(2 * LATENESS_MS);
            for word in [Word::Clock(self.now), Word::Beat] {
                self.tell(site, word).await?;
            }
            // It fails while anything waits, also for the clock.
            if site.tell(Word::Drain).await? == Outcome::Done {
                self.send_aside(site).await?;
                ensure!(self.aside()? == 0, "clicks are kept aside after all of them were sent");
                self.browsers.judge().arrived();
                return Ok(());
            }
        }
        bail!("the spool does not come to its end")
    }

    /// Everything arrives, the last minute becomes final, and a start from what is on disk says the same.
    pub(super) async fn finish(&mut self) -> Result<()> {
        // Nothing that was held is held any more: every life of it is over.
        let mut site = self.start(Fate::QUIET, false).await?.context("the last life")?;
        self.now = self.latest;
        self.drain(&mut site).await?;
        for pause in [0, LATENESS_MS + SLACK_MS + 60_000, LATENESS_MS + SLACK_MS + 60_000, 60_000] {
            self.pass(pause);
            for word in [Word::Clock(self.now), Word::Beat, Word::Settle] {
                self.tell(&mut site, word).await?;
            }
            self.watch(&site).await?;
        }
        let (cells, body) = self.reports(&site).cells().await.context("final")?;
        self.browsers.judge().check(&cells).map_err(anyhow::Error::msg).context("final")?;
        ensure!(
            body["totals"]["provisionalClicks"] == 0,
            "at {} minutes are final up to {} only: {}",
            self.now,
            body["completeThrough"],
            body["totals"]
        );
        site.kill().await;
        let mut site = self.start(Fate::QUIET, false).await?.context("a start after the last life")?;
        ensure!(site.tell(Word::Settle).await? == Outcome::Done, "it does not settle after a start");
        let (again, _) = self.reports(&site).cells().await.context("after a start")?;
        ensure!(cells == again, "a start changed final numbers");
        self.watch(&site).await?;
        self.done.billed = cells.values().sum();
        site.kill().await;
        self.read_tables(&cells).context("the warehouse's files")
    }

    /// What the reports say is what the files hold, row by row.
    fn read_tables(&mut self, reported: &Cells) -> Result<()> {
        let tables = Tables::of(&self.disk.root);
        let rows = tables.raw_clicks()?;
        self.browsers.judge().check_rows(&rows).map_err(anyhow::Error::msg)?;
        let settled = tables::settled(&self.disk.root)?;
        self.browsers.judge().check_records(&rows, &settled).map_err(anyhow::Error::msg)?;
        let (corrections, count) = tables.corrections()?;
        let mut closed = tables.closed(click::Minute::from_number(i64::MAX / 60_000))?;
        ensure_sums(&rows, reported, "raw rows")?;
        for (cell, delta) in corrections {
            *closed.entry(cell).or_default() += delta;
        }
        closed.retain(|_, clicks| *clicks != 0);
        ensure_same(&closed, reported, "minutes with their corrections")?;
        self.done.census.corrections += count;
        let mut times: HashMap<&str, u64> = HashMap::new();
        rows.iter().for_each(|row| *times.entry(&row.click).or_default() += 1);
        self.done.census.replays += times.values().filter(|times| **times > 1).count() as u64;
        Ok(())
    }
}

fn ensure_sums(rows: &[Row], reported: &Cells, what: &str) -> Result<()> {
    let mut sums = Cells::new();
    for row in rows.iter().filter(|row| row.is_billed()) {
        *sums.entry(row.cell.clone()).or_default() += 1;
    }
    ensure_same(&sums, reported, what)
}

fn ensure_same(held: &Cells, reported: &Cells, what: &str) -> Result<()> {
    let cells = held.keys().chain(reported.keys());
    let clicks = |of: &Cells, cell| of.get(cell).copied().unwrap_or(0);
    let differs = { cells }.find(|cell| clicks(held, cell) != clicks(reported, cell));
    match differs {
        Some(cell) => {
            bail!("{what} come to {} in {cell:?}, and reports to {}", clicks(held, cell), clicks(reported, cell))
        }
        None => Ok(()),
    }
}

/// A process does not panic. Delta Lake's writer does when its disk fails, catches that itself and goes on with an error.
pub(super) fn ensure_calm(fault: Fault, said: &str) -> Result<()> {
    ensure!(fault.is_of_disk() || !said.contains("panicked"), "it panicked: {said}");
    Ok(())
}

fn ensure_named(damage: &Damage, said: &str) -> Result<()> {
    ensure!(damage.is_named_by(said), "it is not named: {said}");
    ensure!(!said.contains("panicked"), "it panicked: {said}");
    Ok(())
}
