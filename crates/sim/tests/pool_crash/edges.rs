//! Each safeguard taken out in turn must turn its histories red. A simulator that cannot fail proves nothing.

use crate::commits::explore_commits;
use crate::damage::{End, explore_damage};
use crate::superblocks::{explore_lives, explore_superblock_bits};
use aegisfs_base::sabotage::{Edge, without};
use aegisfs_sim::Plan;

/// Crash points within which a missing safeguard has to show.
const POINTS: u64 = 1_000;
const SEED: u64 = 71;

fn plan() -> Plan {
    // The environment's budget is for the others: a safeguard must show within this one.
    Plan { budget: POINTS, ..Plan::from_env(SEED, POINTS) }
}

fn commits_notice(edge: Edge) {
    let failure = without(edge, || explore_commits(1, &plan())).expect_err("it must show");
    eprintln!("without {edge:?}, after {} cuts: {failure}", failure.passed);
}

fn lives_notice(edge: Edge) {
    let failure = without(edge, || explore_lives(1, &plan())).expect_err("it must show");
    eprintln!("without {edge:?}, after {} cuts: {failure}", failure.passed);
}

#[test]
fn superblock_alternates() {
    // What changes when a life begins lies in one sector, which does not tear; a map that grows does.
    commits_notice(Edge::SuperblockAlternates);
}

#[test]
fn superblock_flush() {
    lives_notice(Edge::SuperblockFlush);
}

#[test]
fn superblock_checksum() {
    let edge = Edge::SuperblockChecksum;
    let failure = without(edge, || explore_superblock_bits(SEED, POINTS)).expect_err("it must show");
    eprintln!("without {edge:?}, seed {SEED}: {failure}");
}

#[test]
fn growth_map_first() {
    commits_notice(Edge::GrowthMapFirst);
}

#[test]
fn page_sums_alternate() {
    commits_notice(Edge::PageSumsAlternate);
}

#[test]
fn page_flush() {
    commits_notice(Edge::PageFlush);
}

#[test]
fn page_verify() {
    let edge = Edge::PageVerify;
    let failure = without(edge, || explore_damage(SEED, End::Engine)).expect_err("it must show");
    eprintln!("without {edge:?}, seed {SEED}: {failure}");
}
