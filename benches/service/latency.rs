//! Seconds from an edit to its arrival on the other side, and what that costs in API calls, against the emulator with
//! its request budgets. Analysts edit through the real APIs; arrival is seen on the control listener, which costs the
//! service nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::emulator::{Analyst, Call, Emulator, Place, State};
use crate::support::service::{self, CLIENT_ID, Configuration, Service};
use crate::support::{in_step, until};
use crate::{Effort, median, percentile, verdict};

/// Several tenants, so that the emulator's limit of 50 Graph calls a minute and tenant leaves room for many edits.
const PLACES: u32 = 4;
const INCIDENTS_PER_PLACE: usize = 6;
/// Longer than an idle poller's stretched interval, twice.
const PATIENCE: Duration = Duration::from_secs(150);
/// How often arrival is looked for: the resolution of the figures.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A linked pair.
struct Pair {
    place: usize,
    incident: String,
    twin: String,
}

struct Stage {
    emulator: Emulator,
    places: Vec<Place>,
    analysts: Vec<Analyst>,
    service: Service,
    pairs: Vec<Pair>,
    /// Counts edits, so that each is recognised on the other side.
    edits: u64,
    defender_every: Duration,
    sentinel_every: Duration,
    /// How often the pollers come round before all is taken to be quiet.
    rounds: usize,
    /// 429 answers so far.
    throttled: usize,
}

/// An edit on its way.
struct Underway {
    pair: usize,
    mark: String,
    since: Instant,
}

/// What a stage of the run showed.
struct Shown {
    seconds: Vec<f64>,
    calls_per_change: f64,
}

/// Measures and prints. Returns whether what must be reached was reached.
pub(crate) async fn measure(effort: &Effort, folder: &Path) -> bool {
    let folder = tempfile::tempdir_in(folder).expect("the target folder takes a folder");
    let mut stage = Stage::set(effort, folder.path()).await;
    let edits = effort.samples(24, 4);
    let hinted = stage.sentinel_edits_with_hint(edits).await;
    let polled = stage.sentinel_edits_without_hint(edits).await;
    let found = stage.defender_edits(edits).await;
    let burst = stage.burst().await;
    let throttled = stage.throttled;
    println!("\n## From an edit to the other side\n");
    println!(
        "Against the emulator with its limits, {PLACES} tenants, {} incidents, polls every {} s (Defender) and {} s \
         (Sentinel). Calls: by the service to Graph and ARM, list polls aside, our own echo included.\n",
        stage.pairs.len(),
        stage.defender_every.as_secs(),
        stage.sentinel_every.as_secs()
    );
    println!("| edit | edits | median s | p90 s | longest s | API calls a change |");
    println!("| --- | --: | --: | --: | --: | --: |");
    let rows = [
        ("in Sentinel, told by a playbook", &hinted),
        ("in Sentinel, found by polling", &polled),
        ("in Defender, found by polling", &found),
    ];
    for (edit, Shown { seconds, calls_per_change }) in rows {
        println!(
            "| {edit} | {} | {:.2} | {:.2} | {:.2} | {calls_per_change:.2} |",
            seconds.len(),
            median(seconds.clone()),
            percentile(seconds.clone(), 0.9),
            percentile(seconds.clone(), 1.0)
        );
    }
    println!();
    let seconds = median(hinted.seconds.clone());
    let what = "edit in Sentinel with playbook hint, until Defender shows it, median";
    let mut reached = verdict(what, &format!("{seconds:.2} s"), "under 1 s", seconds < 1.0);
    let seconds = median(found.seconds.clone());
    let what = "edit in Defender, found by polling, median";
    reached &= verdict(what, &format!("{seconds:.2} s"), "under 8 s", seconds < 8.0);
    let calls = rows.iter().map(|(_, shown)| shown.calls_per_change).fold(0.0, f64::max);
    let what = "API calls for one propagated change, the dearest of the three ways";
    reached &= verdict(what, &format!("{calls:.2}"), "at most 3", calls <= 3.0);
    let what = "API calls for an edit and 100 notifications about it within a second";
    reached &= verdict(what, &burst.to_string(), "at most 4", burst <= 4);
    reached &= verdict("429 answers in the whole run", &throttled.to_string(), "none", throttled == 0);
    reached
}

impl Stage {
    async fn set(effort: &Effort, folder: &Path) -> Self {
        let emulator = Emulator::start(folder, 7);
        let places = emulator.places(PLACES).await;
        let mut analysts = Vec::new();
        let mut raised = Vec::new();
        for (number, place) in places.iter().enumerate() {
            analysts.push(emulator.analyst(place, "wendy@contoso.com").await);
            for _ in 0..effort.samples(INCIDENTS_PER_PLACE, 2) {
                let incident = json!({
                    "displayName": format!("Incident {}", raised.len()), "severity": "medium", "status": "active",
                    "classification": "unknown", "determination": "unknown", "customTags": [],
                });
                raised.push((number, emulator.raise(place, incident).await));
            }
        }
        let store = format!("sqlite://{}", folder.join("lockstep.db").display());
        let mut configuration = Configuration::new(&emulator.hello, &places, &store);
        let mut every = (Duration::from_secs(10), Duration::from_secs(15));
        if effort.quick {
            every = (Duration::from_secs(2), Duration::from_secs(1));
            (configuration.defender_every, configuration.sentinel_every) = (Some("2s"), Some("1s"));
        }
        let service = Service::start(folder, &configuration).await;
        let mut stage = Self {
            emulator,
            places,
            analysts,
            service,
            pairs: Vec::new(),
            edits: 0,
            defender_every: every.0,
            sentinel_every: every.1,
            rounds: effort.samples(2, 1),
            throttled: 0,
        };
        stage.wait_until_in_step().await;
        let state = stage.emulator.state().await;
        for (place, incident) in raised {
            let twin = state.twin(&stage.places[place], &incident).expect("it is in step");
            let twin = twin["name"].as_str().expect("ARM names its incidents").to_owned();
            stage.pairs.push(Pair { place, incident, twin });
        }
        stage.settle().await;
        stage
    }

    async fn wait_until_in_step(&self) {
        until("both sides say the same", PATIENCE, || async {
            let state = self.emulator.state().await;
            let found: Vec<String> =
                self.places.iter().flat_map(|place| in_step::differences(&state, place)).collect();
            if found.is_empty() { Ok(()) } else { Err(format!("{found:?}\n{}", self.service.log_tail())) }
        })
        .await;
    }

    /// Waits until every poller has come round (twice, unless in haste) since now, so that every echo has been heard, then counts what the
    /// service called since the last time and forgets it. Polls are left out.
    async fn settle(&mut self) -> usize {
        let before = self.emulator.calls_of(CLIENT_ID).await;
        let rounds = |calls: &[Call], side: &str| {
            calls.iter().filter(|call| call.service == side && call.is_list()).count()
        };
        let enough = self.rounds * self.places.len();
        until("the pollers come round", PATIENCE, || async {
            let calls = self.emulator.calls_of(CLIENT_ID).await;
            let more = |side: &str| rounds(&calls, side) - rounds(&before, side);
            if more("graph") >= enough && more("arm") >= enough { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        let calls = self.emulator.calls_of(CLIENT_ID).await;
        self.throttled += calls.iter().filter(|call| call.status == Some(429)).count();
        self.emulator.forget_calls().await;
        calls.iter().filter(|call| !call.is_list()).count()
    }

    /// A word that no earlier edit used.
    fn mark(&mut self) -> String {
        self.edits += 1;
        format!("mark-{}", self.edits)
    }

    /// The pair of the n-th edit, places in turn.
    fn pair(&self, n: usize) -> usize {
        let per_place = self.pairs.len() / self.places.len();
        let (place, nth) = (n % self.places.len(), n / self.places.len() % per_place);
        let mut of_place = (0..self.pairs.len()).filter(|&pair| self.pairs[pair].place == place);
        of_place.nth(nth).expect("every place has as many pairs")
    }

    /// An analyst sets a severity and a tag in Sentinel. Returns what ARM answered and the edit on its way.
    async fn edit_sentinel(&mut self, pair: usize) -> (Value, Underway) {
        let mark = self.mark();
        let Pair { place, twin, .. } = &self.pairs[pair];
        let severity = ["Low", "High"][usize::try_from(self.edits % 2).expect("0 or 1")];
        let change = json!({"severity": severity, "labels": [{"labelName": mark}]});
        let written = self.analysts[*place].edit_sentinel(twin, change).await;
        (written, Underway { pair, mark, since: Instant::now() })
    }

    /// Edits one after the other; every second one is of the same incident as the one before.
    async fn sentinel_edits_with_hint(&mut self, edits: usize) -> Shown {
        let mut seconds = Vec::new();
        for n in 0..edits {
            let pair = self.pair(n / 2);
            let (written, underway) = self.edit_sentinel(pair).await;
            let place = self.pairs[pair].place;
            let body = service::playbook_body(&self.places[place], "Update", &written);
            let status = self.service.post_playbook(place, &format!("msg_{}", underway.mark), &body).await;
            assert_eq!(status.expect("the service answers").as_u16(), 202);
            seconds.extend(self.arrivals(vec![underway], Self::defender_shows).await);
        }
        self.shown(seconds).await
    }

    /// Edits at random moments of the poller's round, several at a time.
    async fn sentinel_edits_without_hint(&mut self, edits: usize) -> Shown {
        let mut seconds = Vec::new();
        let mut dice = fastrand::Rng::with_seed(11);
        let at_once = self.pairs.len();
        for first in (0..edits).step_by(at_once) {
            let mut underway = Vec::new();
            for n in first..edits.min(first + at_once) {
                let until = pause(&mut dice, self.sentinel_every, at_once);
                self.watch(&mut underway, &mut seconds, until, Self::defender_shows).await;
                underway.push(self.edit_sentinel(self.pair(n)).await.1);
            }
            seconds.extend(self.arrivals(underway, Self::defender_shows).await);
        }
        self.shown(seconds).await
    }

    async fn defender_edits(&mut self, edits: usize) -> Shown {
        let mut seconds = Vec::new();
        let mut dice = fastrand::Rng::with_seed(12);
        let at_once = self.pairs.len();
        for first in (0..edits).step_by(at_once) {
            let mut underway = Vec::new();
            for n in first..edits.min(first + at_once) {
                let until = pause(&mut dice, self.defender_every, at_once);
                self.watch(&mut underway, &mut seconds, until, Self::sentinel_shows).await;
                let (pair, mark) = (self.pair(n), self.mark());
                let Pair { place, incident, .. } = &self.pairs[pair];
                let severity = ["medium", "informational"][usize::try_from(self.edits % 2).expect("0 or 1")];
                let patch = json!({"severity": severity, "customTags": [mark]});
                self.analysts[*place].edit_defender(incident, patch).await;
                underway.push(Underway { pair, mark, since: Instant::now() });
            }
            seconds.extend(self.arrivals(underway, Self::sentinel_shows).await);
        }
        self.shown(seconds).await
    }

    /// One edit, a hundred notifications about it within a second, each a delivery of its own that names another
    /// version. Returns the API calls until everything is quiet.
    async fn burst(&mut self) -> usize {
        let pair = self.pair(1);
        let place = self.pairs[pair].place;
        let (written, underway) = self.edit_sentinel(pair).await;
        let mut posts = Vec::new();
        let start = Instant::now();
        for n in 0..100_u32 {
            let mut incident = written.clone();
            if n > 0 {
                incident["etag"] = json!(format!("\"00000000-0000-0000-0000-{n:012x}\""));
            }
            let body = service::playbook_body(&self.places[place], "Update", &incident);
            let id = format!("msg_burst_{n}");
            tokio::time::sleep_until((start + n * Duration::from_millis(9)).into()).await;
            posts.push(self.service.post_playbook(place, &id, &body).await);
        }
        assert!(posts.into_iter().all(|post| post.is_ok_and(|status| status == 202)), "all are accepted");
        self.arrivals(vec![underway], Self::defender_shows).await;
        self.settle().await
    }

    async fn shown(&mut self, seconds: Vec<f64>) -> Shown {
        let calls = self.settle().await;
        self.wait_until_in_step().await;
        let calls_per_change = calls as f64 / seconds.len() as f64;
        Shown { seconds, calls_per_change }
    }

    /// Waits for all of them.
    async fn arrivals(
        &self,
        mut underway: Vec<Underway>,
        shows: fn(&Self, &State, &Underway) -> bool,
    ) -> Vec<f64> {
        let mut seconds = Vec::new();
        let start = Instant::now();
        while !underway.is_empty() {
            self.collect(&mut underway, &mut seconds, shows).await;
            assert!(
                start.elapsed() < PATIENCE,
                "{} edits never arrived.\n{}",
                underway.len(),
                self.service.log_tail()
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
        seconds
    }

    /// Looks for arrivals until an instant.
    async fn watch(
        &self,
        underway: &mut Vec<Underway>,
        seconds: &mut Vec<f64>,
        end: Instant,
        shows: fn(&Self, &State, &Underway) -> bool,
    ) {
        while Instant::now() < end {
            self.collect(underway, seconds, shows).await;
            tokio::time::sleep_until((Instant::now() + LOOK_EVERY).min(end).into()).await;
        }
    }

    /// Takes out of `underway` what has arrived.
    async fn collect(
        &self,
        underway: &mut Vec<Underway>,
        seconds: &mut Vec<f64>,
        shows: fn(&Self, &State, &Underway) -> bool,
    ) {
        let state = self.emulator.state().await;
        underway.retain(|edit| {
            let arrived = shows(self, &state, edit);
            if arrived {
                seconds.push(edit.since.elapsed().as_secs_f64());
            }
            !arrived
        });
    }

    fn defender_shows(&self, state: &State, edit: &Underway) -> bool {
        let pair = &self.pairs[edit.pair];
        let incident = state.incident(&self.places[pair.place], &pair.incident);
        let tags = incident.and_then(|incident| incident["customTags"].as_array());
        tags.is_some_and(|tags| tags.iter().any(|tag| *tag == edit.mark.as_str()))
    }

    fn sentinel_shows(&self, state: &State, edit: &Underway) -> bool {
        let pair = &self.pairs[edit.pair];
        let twins = state.sentinel(&self.places[pair.place]);
        let twin = twins.iter().find(|twin| twin["name"] == pair.twin.as_str());
        let labels = twin.and_then(|twin| twin["properties"]["labels"].as_array());
        labels.is_some_and(|labels| labels.iter().any(|label| label["labelName"] == edit.mark.as_str()))
    }
}

/// When to do the next of `edits` edits, so that all of them spread at random over about two rounds of a poller.
fn pause(dice: &mut fastrand::Rng, round: Duration, edits: usize) -> Instant {
    let most = round.as_secs_f64() * 4.0 / edits as f64;
    Instant::now() + Duration::from_secs_f64(dice.f64() * most)
}
