//! What the kernel counts: CPU time of processes with their descendants, private memory, and everybody else's CPU time.

use std::collections::HashMap;
use std::fs;

/// Ticks a second in `/proc`: fixed at 100 for every architecture of Linux that we build for.
const TICKS: f64 = 100.0;
/// KiB a page.
const PAGE_KIB: u64 = 4;

/// CPU seconds of these processes, their descendants, and the children that they have reaped.
pub(crate) fn cpu_seconds(roots: &[u32]) -> f64 {
    let mut parent: HashMap<u32, u32> = HashMap::new();
    let mut cpu: HashMap<u32, f64> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(stat) = fs::read_to_string(format!("/proc/{id}/stat")) else { continue };
        // The name in brackets may hold anything, brackets included; what follows is plain.
        let Some(end) = stat.rfind(')') else { continue };
        let fields: Vec<f64> =
            stat[end + 2..].split(' ').map(|field| field.parse().unwrap_or_default()).collect();
        let field = |index: usize| fields.get(index).copied().unwrap_or_default();
        parent.insert(id, field(1) as u32);
        cpu.insert(id, (field(11) + field(12) + field(13) + field(14)) / TICKS);
    }
    let belongs = |mut id: u32| {
        for _ in 0..64 {
            if roots.contains(&id) {
                return true;
            }
            match parent.get(&id) {
                Some(&next) if next != 0 => id = next,
                _ => return false,
            }
        }
        false
    };
    cpu.iter().filter(|(id, _)| belongs(**id)).map(|(_, seconds)| seconds).sum()
}

/// CPU seconds of this process alone: the servers that it measures are its children.
pub(crate) fn own_cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    fields.take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// CPU seconds that all processes of the machine have used since it started.
pub(crate) fn all_cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let fields = line.split_whitespace().skip(1).map(|field| field.parse::<f64>().unwrap_or_default());
    fields.take(3).sum::<f64>() / TICKS
}

/// Private memory of one process, in KiB: resident less shared.
pub(crate) fn private_kib(id: u32) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{id}/statm")).unwrap_or_default();
    let pages: Vec<u64> = statm.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    match pages.as_slice() {
        [_, resident, shared, ..] => resident.saturating_sub(*shared) * PAGE_KIB,
        _ => 0,
    }
}

/// How many processors there are.
pub(crate) fn processors() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64)
}
