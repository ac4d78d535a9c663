//! What the README's figures come from, in one run: `scripts/bench`, or `cargo bench --locked --bench service`.
//! Measures the release binary from outside: real processes, real sockets, the emulator for the two systems.
//!
//! Options: `--quick` (one round, few samples, short polls: shows that everything works, not how fast), and any of
//! `acceptance`, `latency`, `footprint` to measure only that.

mod acceptance;
mod bare;
mod footprint;
mod latency;
mod load;
mod machine;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::Duration;

/// How much is measured.
struct Effort {
    quick: bool,
    rounds: usize,
    warm: Duration,
    measured: Duration,
}

impl Effort {
    const FULL: Effort = Effort {
        quick: false,
        rounds: 5,
        warm: Duration::from_millis(500),
        measured: Duration::from_secs(2),
    };
    const QUICK: Effort = Effort {
        quick: true,
        rounds: 1,
        warm: Duration::from_millis(100),
        measured: Duration::from_millis(300),
    };

    /// A number of samples.
    const fn samples(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = |name: &str| arguments.iter().any(|argument| argument == name);
    if given(bare::ARGUMENT) {
        bare::serve();
        return ExitCode::SUCCESS;
    }
    // Test runners ask every binary what tests it has.
    if given("--list") {
        return ExitCode::SUCCESS;
    }
    let effort = if given("--quick") { Effort::QUICK } else { Effort::FULL };
    let parts = ["acceptance", "latency", "footprint"];
    let all = !parts.iter().any(|part| given(part));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the target folder takes a folder");
    // One thread: the sender must leave the machine to what it measures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut reached = true;
        if all || given("acceptance") {
            reached &= acceptance::measure(&effort, folder.path()).await;
        }
        if all || given("latency") {
            reached &= latency::measure(&effort, folder.path()).await;
        }
        if all || given("footprint") {
            reached &= footprint::measure(&effort, folder.path()).await;
        }
        // A shared machine may miss a figure for reasons of its own, so only a failed run is an error.
        println!(
            "\n{}",
            if reached { "All that must be reached was reached." } else { "Not all was reached." }
        );
    });
    ExitCode::SUCCESS
}

/// Prints what was measured beside what must be reached.
fn verdict(what: &str, measured: &str, limit: &str, reached: bool) -> bool {
    println!("- {what}: **{measured}** (must reach: {limit}){}", if reached { "" } else { " MISSED" });
    reached
}

/// The middle one; the mean of the two middle ones of an even number.
fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// The value below which `share` of all lie.
fn percentile(mut values: Vec<f64>, share: f64) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_unstable_by(f64::total_cmp);
    let rank = (values.len() as f64 * share).ceil() as usize;
    values[rank.clamp(1, values.len()) - 1]
}
