//! Random worlds: people edit both sides, hints get lost, doubled and late, calls fail in every way, the application
//! dies at any port call. Whenever the world has become quiet, everything that was promised must hold.

use std::sync::Arc;
use std::time::Duration;

use lockstep::adapters::store::SqliteStore;
use lockstep::domain::model::Side;
use lockstep::ports::Hold;

use crate::sides::{CELLS, Faults};
use crate::world::World;

const SIDES: [Side; 2] = [Side::Defender, Side::Sentinel];

async fn live(seed: u64, file: Option<&str>) -> Result<u32, String> {
    let mut world = World::new(seed);
    if let Some(path) = file {
        world.file = Some(Arc::new(SqliteStore::open(path).await.unwrap()));
    }
    let shared = world.shared.clone();
    let pick = |most: usize| shared.below(most);
    let faulty = !seed.is_multiple_of(4);
    let mut ids: Vec<String> = Vec::new();
    let mut before: Vec<[u8; 3]> = Vec::new();
    for _epoch in 0..2 {
        for _ in 0..1 + pick(2) {
            let id = (100 + ids.len()).to_string();
            world.incident(&id);
            ids.push(id);
        }
        if faulty {
            let p = |most: f64| shared.rng.lock().unwrap().f64() * most;
            shared.remote.lock().unwrap().faults = Faults {
                dropped: p(0.1),
                answer_lost: p(0.2),
                stale: p(0.3),
                throttled: p(0.05),
                broken: p(0.1),
                list_lags: p(0.5),
            };
        }
        let fuse = |world: &World| {
            if world.shared.chance(0.7) { 5 + world.shared.below(300) as i64 } else { i64::MAX }
        };
        let mut app = world.start(if faulty { fuse(&world) } else { i64::MAX });
        for _ in 0..4 + pick(6) {
            let pause = [5, 80, 400, 3_000, 20_000][pick(5)];
            let alive = tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(pause)) => true,
                () = app.fuse.blown.notified() => false,
            };
            if !alive {
                drop(app);
                app = world.start(fuse(&world));
            }
            let (side, id, cell) = (SIDES[pick(2)], &ids[pick(ids.len())], CELLS[pick(3)]);
            match pick(10) {
                0 if faulty => {
                    let until = world.now() + time::Duration::seconds(20);
                    shared.remote.lock().unwrap().no_entry.insert(side, until);
                }
                1 if faulty => {
                    let slip = (id.clone(), cell, pick(3) as u8);
                    shared.remote.lock().unwrap().slip.insert(side, slip);
                }
                2 => {
                    // An operator, through another process on the same disk.
                    let other = world.door();
                    let (route, since) = ("*".to_owned(), world.now());
                    if pick(2) == 0 {
                        other.hold(&Hold { route, since, reason: "a drill".into() }).await.unwrap();
                    } else {
                        other.release("*").await.unwrap();
                    }
                }
                _ => {
                    if !world.edit(side, id, cell, pick(3) as u8) {
                        continue;
                    }
                    // No hint, one, or several; now or later, so that they overtake each other.
                    for _ in 0..pick(4) {
                        let side = if pick(3) == 0 { side.other() } else { side };
                        let hint = world.hint(side, id, pick(2) == 0);
                        let door = world.door();
                        let late = Duration::from_millis(pick(2_000) as u64);
                        let clock = shared.clock.clone();
                        tokio::spawn(async move {
                            tokio::time::sleep(late).await;
                            let now = lockstep::ports::Clock::now(&*clock);
                            door.remember(vec![hint], None, now).await.unwrap();
                        });
                    }
                }
            }
        }
        {
            let mut remote = shared.remote.lock().unwrap();
            remote.faults = Faults::default();
            remote.no_entry.clear();
            remote.slip.clear();
        }
        world.door().release("*").await.unwrap();
        // A new start looks at the lists with fresh eyes; the old one must find its way as well.
        if !app.fuse.mend() || pick(3) == 0 {
            drop(app);
            app = world.start(i64::MAX);
        }
        world.quiet().await.map_err(|why| format!("{why}\n{}", world.story()))?;
        before = world.check(&ids, &before).await.map_err(|why| format!("{why}\n{}", world.story()))?;
        let writes = world.writes();
        tokio::time::sleep(Duration::from_secs(400)).await;
        if world.writes() != writes {
            return Err("an echo: something was written though nobody edits".to_owned());
        }
        drop(app);
        // The loop breaker counts by the hour.
        tokio::time::advance(Duration::from_secs(3_700)).await;
    }
    let losses = shared.remote.lock().unwrap().window_losses;
    Ok(losses)
}

fn run(seeds: std::ops::Range<u64>, file: bool) {
    let (mut losses, count) = (0, seeds.end - seeds.start);
    for seed in seeds {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lockstep.db");
        let path = file.then(|| path.to_str().unwrap());
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        match runtime.block_on(live(seed, path)) {
            Ok(lost) => losses += lost,
            Err(why) => panic!("LOCKSTEP_SEED={seed}: {why}"),
        }
    }
    println!("{count} worlds, {losses} edits lost in Graph's window");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn random_worlds_keep_every_promise() {
    match (number("LOCKSTEP_SEED"), number("LOCKSTEP_SEEDS")) {
        (Some(seed), _) => run(seed..seed + 1, false),
        (None, count) => run(0..count.unwrap_or(300), false),
    }
}

#[test]
fn so_do_some_on_the_real_store() {
    match number("LOCKSTEP_SEED") {
        Some(seed) => run(seed..seed + 1, true),
        None => run(10_000..10_000 + number("LOCKSTEP_SEEDS").unwrap_or(300) / 60, true),
    }
}
