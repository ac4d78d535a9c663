//! Notifications accepted and durable per second, against the bare handler, interleaved.
//!
//! Each case gets a fresh server on a fresh store, so that no case pays for another's backlog. The service's two sides
//! are a loopback port that takes connections and never answers: its workers wait there, and what is measured is
//! acceptance alone, as with the receivers it is compared to.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::load::{self, Door, Run};
use crate::support::emulator::Place;
use crate::support::postgres::{Database, VARIABLE};
use crate::support::process::Process;
use crate::support::service::{Configuration, Service};
use crate::{Effort, bare, machine, median};

const CONCURRENCY: [usize; 3] = [1, 64, 256];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Server {
    Bare,
    Sqlite,
    Postgres,
}

impl Server {
    const fn as_str(self) -> &'static str {
        match self {
            Server::Bare => "bare handler",
            Server::Sqlite => "SQLite, WAL, synchronous=FULL",
            Server::Postgres => "PostgreSQL",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Case {
    server: Server,
    door: usize,
    concurrency: usize,
}

/// Measures and prints. Returns whether what must be reached was reached.
pub(crate) async fn measure(effort: &Effort, folder: &Path) -> bool {
    let probe = Database::create().await;
    let postgres = probe.is_some();
    if let Some(database) = probe {
        database.drop_now().await;
    }
    let mut servers = vec![Server::Bare, Server::Sqlite];
    servers.extend(postgres.then_some(Server::Postgres));
    let mut cases = Vec::new();
    for &server in &servers {
        for door in 0..Door::ALL.len() {
            cases.extend(CONCURRENCY.map(|concurrency| Case { server, door, concurrency }));
        }
    }
    let mut dice = fastrand::Rng::new();
    let mut runs: HashMap<Case, Vec<Run>> = HashMap::new();
    for round in 1..=effort.rounds {
        dice.shuffle(&mut cases);
        for &case in &cases {
            eprint!("\rround {round} of {}: {:<60}", effort.rounds, format!("{case:?}"));
            runs.entry(case).or_default().push(once(case, effort, folder).await);
        }
    }
    eprintln!();
    print(&servers, &runs, effort);
    if !postgres {
        println!(
            "\nPostgreSQL was not measured: {VARIABLE} is not set. `scripts/bench` starts a server for it, or"
        );
        println!("`scripts/with-postgres cargo bench --locked --bench service`.");
    }
    judge(&runs)
}

/// One case, once: start, warm up, measure, stop.
async fn once(case: Case, effort: &Effort, folder: &Path) -> Run {
    let place = Place::numbered(1);
    let folder = tempfile::tempdir_in(folder).expect("the target folder takes a folder");
    let load = |port: u16, server: Vec<u32>| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (door, place) = (Door::ALL[case.door], place.clone());
        let windows = (effort.warm, effort.measured);
        async move { load::run(address, door, &place, case.concurrency, windows, &server).await }
    };
    if case.server == Server::Bare {
        let own = std::env::current_exe().expect("a running program has a file");
        let mut command = Command::new(own);
        command.arg(bare::ARGUMENT).stdout(Stdio::piped());
        let log = folder.path().join("bare.log");
        let (process, line) = Process::spawn_and_listen(command, &log, Duration::from_secs(10));
        let port = line.trim().parse().expect("the bare server prints its port");
        return load(port, vec![process.id()]).await;
    }
    // Bound and never accepted from: the kernel completes the handshake, and nobody ever answers.
    let silence = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let nowhere = format!("http://{}", silence.local_addr().expect("it is bound"));
    let database = if case.server == Server::Postgres { Database::create().await } else { None };
    let file = format!("sqlite://{}", folder.path().join("lockstep.db").display());
    let configuration = Configuration {
        login: &nowhere,
        graph: &nowhere,
        arm: &nowhere,
        places: std::slice::from_ref(&place),
        store: database.as_ref().map_or(file.as_str(), |database| database.url.as_str()),
        defender_every: None,
        sentinel_every: None,
        route: "",
        fields: "",
        more: "",
    };
    let mut service = Service::start(folder.path(), &configuration).await;
    let mut processes = vec![service.process_id()];
    if let Some(database) = &database {
        processes.extend(database.server_process().await);
    }
    let run = load(service.port, processes).await;
    service.kill();
    if let Some(database) = database {
        database.drop_now().await;
    }
    run
}

/// The median over the rounds of something.
fn of(runs: &[Run], value: impl Fn(&Run) -> f64) -> f64 {
    median(runs.iter().map(value).collect())
}

/// The median of the per-round ratios to the bare handler at the same door and concurrency.
fn ratio(runs: &HashMap<Case, Vec<Run>>, case: Case, value: impl Fn(&Run) -> f64) -> f64 {
    let bare = &runs[&Case { server: Server::Bare, ..case }];
    median(runs[&case].iter().zip(bare).map(|(run, bare)| value(run) / value(bare)).collect())
}

fn print(servers: &[Server], runs: &HashMap<Case, Vec<Run>>, effort: &Effort) {
    println!("\n## Notifications accepted and durable\n");
    println!(
        "Median of {} rounds of {:.1} s, cases shuffled in each; ratios are medians of the ratios within a round. \
         Bodies of {} (playbook) and {} (graph) bytes, each about another incident, every answer 202. Sender, server and store on one machine of {} \
         processors. A fresh server and store for each case; its workers wait on a port that never answers. CPU of \
         the server's processes{}.\n",
        effort.rounds,
        effort.measured.as_secs_f64(),
        Door::Playbook.body(&Place::numbered(1)).len(),
        Door::Graph.body(&Place::numbered(1)).len(),
        machine::processors(),
        if servers.contains(&Server::Postgres) { ", PostgreSQL's included where it runs here" } else { "" },
    );
    println!(
        "| door | receiver | conc. | posts/s | p50 ms | p99 ms | CPU µs/post | ratio | CPU ratio | others |"
    );
    println!("| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |");
    for (door, name) in Door::ALL.iter().enumerate() {
        for &server in servers {
            for concurrency in CONCURRENCY {
                let case = Case { server, door, concurrency };
                let own = &runs[&case];
                println!(
                    "| {} | {} | {concurrency} | {:.0} | {:.2} | {:.1} | {:.0} | {:.2} | {:.1} | {:.0} % |",
                    name.as_str(),
                    server.as_str(),
                    of(own, |run| run.posts_a_second),
                    of(own, |run| run.p50_ms),
                    of(own, |run| run.p99_ms),
                    of(own, |run| run.cpu_us_a_post),
                    ratio(runs, case, |run| run.posts_a_second),
                    ratio(runs, case, |run| run.cpu_us_a_post),
                    of(own, |run| run.others) * 100.0,
                );
            }
        }
    }
    println!(
        "\nOthers: the share of the machine that neither sender nor server used. Distrust a run above 15 %."
    );
}

fn judge(runs: &HashMap<Case, Vec<Run>>) -> bool {
    println!();
    let mut reached = true;
    for (door, name) in Door::ALL.iter().enumerate() {
        let case = Case { server: Server::Sqlite, door, concurrency: 64 };
        let rate = ratio(runs, case, |run| run.posts_a_second);
        let cpu = ratio(runs, case, |run| run.cpu_us_a_post);
        let what = format!("{}, SQLite, concurrency 64: rate and CPU to bare", name.as_str());
        reached &= crate::verdict(
            &what,
            &format!("{rate:.2} and {cpu:.1}"),
            "at least 0.40 and at most 2.6",
            rate >= 0.4 && cpu <= 2.6,
        );
    }
    reached
}
