//! Start-up time, idle memory, size of the binary.

use std::path::Path;
use std::time::Duration;

use crate::support::emulator::Emulator;
use crate::support::process::PROGRAM;
use crate::support::service::{CLIENT_ID, Configuration, Service};
use crate::support::until;
use crate::{Effort, machine, median, verdict};

const STARTS: usize = 5;

/// Measures and prints. Returns whether what must be reached was reached.
pub(crate) async fn measure(effort: &Effort, folder: &Path) -> bool {
    let folder = tempfile::tempdir_in(folder).expect("the target folder takes a folder");
    let emulator = Emulator::start(folder.path(), 1);
    let places = emulator.places(1).await;
    let (mut starts, mut memory) = (Vec::new(), Vec::new());
    for start in 0..effort.samples(STARTS, 2) {
        let store = format!("sqlite://{}", folder.path().join(format!("{start}.db")).display());
        let mut service =
            Service::prepare(folder.path(), &Configuration::new(&emulator.hello, &places, &store));
        emulator.forget_calls().await;
        starts.push(service.resume().await.as_secs_f64() * 1_000.0);
        // Idle is when it has signed in and polled both sides once, not before it has begun.
        until("both sides are polled", Duration::from_secs(30), || async {
            let calls = emulator.calls_of(CLIENT_ID).await;
            let polled = |side: &str| calls.iter().any(|call| call.service == side && call.is_list());
            if polled("graph") && polled("arm") { Ok(()) } else { Err(format!("{calls:?}")) }
        })
        .await;
        memory.push(machine::private_kib(service.process_id()) as f64 / 1_024.0);
    }
    let size = std::fs::metadata(PROGRAM).map_or(0, |file| file.len()) as f64 / 1_048_576.0;
    let (start, memory) = (median(starts), median(memory));
    println!("\n## Footprint\n");
    let mut reached = verdict(
        "idle memory (private: resident less shared), one route, after the first polls",
        &format!("{memory:.1} MiB"),
        "30 MiB",
        memory <= 30.0,
    );
    let what = "start, new SQLite store, until `/readyz` answers 200";
    reached &= verdict(what, &format!("{start:.0} ms"), "200 ms", start <= 200.0);
    let what = "binary, stripped, emulator and demo included";
    reached &= verdict(what, &format!("{size:.1} MiB"), "20 MiB", size <= 20.0);
    reached
}
