//! Stands before the C library's file calls of a process (`LD_PRELOAD=libpower_cut.so`), and so below everything that the
//! process has of its own or of others: its own files, the embedded store's, Delta Lake's.
//!
//! Of every change under one folder it keeps a journal, with what is needed to undo it. An fsync is a line in the journal
//! and nothing more: whoever cuts the power undoes what no such line followed. The process meanwhile sees its files as it
//! wrote them, which is what a kernel does until the power fails.
//!
//! | variable | what |
//! |---|---|
//! | `POWER_CUT_ROOT` | the folder, absolute and free of links; without it nothing is done |
//! | `POWER_CUT_JOURNAL` | the journal, outside of the folder and on the same file system |
//! | `POWER_CUT_SAVED` | a folder beside the journal, where removed files are kept until they cannot come back |
//! | `POWER_CUT_DIE` | the process ends at the n-th change, half-way if that is a write |
//! | `POWER_CUT_FULL` | `n+m`: from the n-th change on, m of those that take room find the disk full |
//! | `POWER_CUT_EIO` | the n-th fsync fails; `n KIND`: the n-th of those whose kind begins so |
//! | `POWER_CUT_DIE_AFTER_SYNC` | `n k KIND`: the process ends k changes after the n-th fsync of this kind; with k = 0 before it is done |
//! | `POWER_CUT_NAMES` | words parted by commas that tell one file from another, as digits do |
//! | `POWER_CUT_DEAF` | fsyncs of this kind are left out: a mutation that a proof must find |
//!
//! The kind of an fsync is `PATH after CHANGE`: the path with every part that tells one file from another as `*`, a slash at
//! its end if it is a folder, and what was last done to it. Without ` after …` it is every fsync of such a path,
//! and with ` after something` every one that something was done before.
//!
//! The journal is lines of text with the bytes of an undo behind them; [`journal`] writes them, and the proof reads them.

// Every function here is called by C code, and calls it.
#![allow(clippy::missing_safety_doc, non_snake_case)]

mod calls;
mod journal;
mod state;
