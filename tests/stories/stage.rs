//! The stage of a story: an emulator, a service, the people at both portals; and how every story must end.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::emulator::{Analyst, Call, Emulator, Place, State};
use crate::support::service::{self, CLIENT_ID, Configuration, Service};
use crate::support::{in_step, until};

/// How long a change may take to cross when nothing is in its way: generous, because the machine is shared.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How often both pollers come round, with nobody writing, before a stage counts as quiet.
const QUIET_ROUNDS: usize = 3;

/// Polls so far apart that nothing waits for them.
pub(crate) const SELDOM: &str = "1h";

/// What a story decides about its stage.
pub(crate) struct Scene<'a> {
    pub(crate) places: u32,
    pub(crate) defender_every: &'a str,
    pub(crate) sentinel_every: &'a str,
    /// Whether the emulator enforces the published request budgets, and the service keeps to them.
    pub(crate) budgets: bool,
    /// Set before the service starts.
    pub(crate) switches: Value,
    /// More of every `[[routes]]`.
    pub(crate) route: &'a str,
    /// `[routes.fields]`.
    pub(crate) fields: &'a str,
    /// More of `[poll]`.
    pub(crate) poll: &'a str,
    /// More of the configuration, in tables of its own.
    pub(crate) more: &'a str,
    pub(crate) tls: bool,
}

impl Default for Scene<'_> {
    fn default() -> Self {
        Self {
            places: 1,
            defender_every: "300ms",
            sentinel_every: "300ms",
            budgets: false,
            switches: json!({}),
            route: "",
            fields: "",
            poll: "",
            more: "",
            tls: false,
        }
    }
}

/// Everything a story plays on.
pub(crate) struct Stage {
    pub(crate) emulator: Emulator,
    pub(crate) places: Vec<Place>,
    /// One per place, signed in to both portals.
    pub(crate) analysts: Vec<Analyst>,
    pub(crate) service: Service,
    /// Which lists are polled often enough to wait for: Graph's, ARM's.
    polled: [bool; 2],
    /// How long they may take to come round a few times: long where a budget has been spent.
    rounds: Duration,
    folder: TempDir,
}

/// A folder of the test's own.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the target folder takes a folder")
}

impl Stage {
    /// Sets it and starts the service.
    pub(crate) async fn set(scene: Scene<'_>) -> Self {
        let mut stage = Self::prepare(scene, |hello| hello.graph.clone()).await;
        stage.service.resume().await;
        stage
    }

    /// Sets it without the service, which finds Graph where `graph` says.
    pub(crate) async fn prepare(
        scene: Scene<'_>,
        graph: impl FnOnce(&crate::support::emulator::Hello) -> String,
    ) -> Self {
        let folder = folder();
        let emulator = match scene.tls {
            true => Emulator::start_on_tls(folder.path(), 7),
            false => Emulator::start(folder.path(), 7),
        };
        if !scene.budgets {
            emulator.switch(json!({"budgets": "off"})).await;
        }
        emulator.switch(scene.switches).await;
        let places = emulator.places(scene.places).await;
        let mut analysts = Vec::new();
        for place in &places {
            analysts.push(emulator.analyst(place, "wendy@contoso.com").await);
        }
        let store = format!("sqlite://{}", folder.path().join("lockstep.db").display());
        let limits = match scene.budgets {
            true => "",
            false => {
                "[limits]\ndefender_per_minute = 10000\ndefender_per_hour = 100000\n\
                 sentinel_reads_per_second = 1000\nsentinel_writes_per_second = 1000\n"
            }
        };
        let authority = match scene.tls {
            true => format!("[http]\nca_file = '{}'\n", folder.path().join("ca.pem").display()),
            false => String::new(),
        };
        let more = format!("{}{limits}{authority}{}", scene.poll, scene.more);
        let more = more.replace("{ingestion}", &emulator.hello.ingestion);
        let graph = graph(&emulator.hello);
        let mut configuration = Configuration::new(&emulator.hello, &places, &store);
        configuration.graph = &graph;
        configuration.defender_every = Some(scene.defender_every);
        configuration.sentinel_every = Some(scene.sentinel_every);
        configuration.route = scene.route;
        configuration.fields = scene.fields;
        configuration.more = &more;
        let service = Service::prepare(folder.path(), &configuration);
        let polled = [scene.defender_every, scene.sentinel_every].map(|every| every != SELDOM);
        let rounds = if scene.budgets { 3 * PATIENCE } else { PATIENCE };
        Self { emulator, places, analysts, service, polled, rounds, folder }
    }

    /// Where this stage keeps its files.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Raises an incident in the first tenant.
    pub(crate) async fn raise(&self, incident: Value) -> String {
        self.emulator.raise(&self.places[0], incident).await
    }

    /// Raises one and waits for its twin. Returns both names.
    pub(crate) async fn linked(&self, incident: Value) -> (String, String) {
        let id = self.raise(incident).await;
        let name = self.twin_of(&id).await;
        (id, name)
    }

    /// The name of an incident's twin in the first workspace, as soon as there is one.
    pub(crate) async fn twin_of(&self, id: &str) -> String {
        let (twin, _) = self
            .until(&format!("{id} has a twin"), |state| {
                state.twin(&self.places[0], id).cloned().ok_or_else(|| "no twin".to_owned())
            })
            .await;
        twin["name"].as_str().expect("ARM names its incidents").to_owned()
    }

    /// Tells the service's door of an incident of the first tenant, as Graph would.
    pub(crate) async fn tell_graph(&self, id: &str) {
        let body = service::graph_body(&self.places[0], id);
        let answer = self.service.post_graph(&body).await.expect("the door answers");
        assert_eq!(answer, StatusCode::ACCEPTED);
    }

    /// Like [`Stage::linked`], where polls are too far apart to wait for.
    pub(crate) async fn linked_by_notification(&self, incident: Value) -> (String, String) {
        let id = self.raise(incident).await;
        self.tell_graph(&id).await;
        let name = self.twin_of(&id).await;
        (id, name)
    }

    /// An analyst of the first place changes a Defender incident.
    pub(crate) async fn edit_defender(&self, id: &str, patch: Value) -> Value {
        self.analysts[0].edit_defender(id, patch).await
    }

    /// An analyst of the first place changes a Sentinel incident.
    pub(crate) async fn edit_sentinel(&self, name: &str, change: Value) -> Value {
        self.analysts[0].edit_sentinel(name, change).await
    }

    /// Looks at both sides until something is so.
    pub(crate) async fn until<T>(
        &self,
        what: &str,
        condition: impl Fn(&State) -> Result<T, String>,
    ) -> (T, Duration) {
        self.until_within(what, PATIENCE, condition).await
    }

    /// The same with a patience of its own.
    pub(crate) async fn until_within<T>(
        &self,
        what: &str,
        patience: Duration,
        condition: impl Fn(&State) -> Result<T, String>,
    ) -> (T, Duration) {
        until(what, patience, || async {
            let state = self.emulator.state().await;
            condition(&state)
                .map_err(|missing| format!("{missing}\nThe service says:\n{}", self.service.log_tail()))
        })
        .await
    }

    /// Waits until a Defender incident of the first place shows these members.
    pub(crate) async fn defender_shows(&self, id: &str, expected: Value) {
        self.until(&format!("Defender incident {id} shows {expected}"), |state| {
            let incident = state.incident(&self.places[0], id).ok_or("it is not there")?;
            lacking(incident, &expected)
        })
        .await;
    }

    /// Waits until the twin of a Defender incident of the first place shows these properties.
    pub(crate) async fn sentinel_shows(&self, id: &str, expected: Value) {
        self.until(&format!("the twin of {id} shows {expected}"), |state| {
            let twin = state.twin(&self.places[0], id).ok_or("no twin")?;
            lacking(&twin["properties"], &expected)
        })
        .await;
    }

    /// Waits until both sides of every place say the same, and nothing but what is tolerated differs.
    pub(crate) async fn in_step(&self) {
        self.in_step_but(PATIENCE, |_| false).await;
    }

    /// The same with a patience and a tolerance of its own.
    pub(crate) async fn in_step_but(&self, patience: Duration, tolerated: impl Fn(&str) -> bool) {
        self.until_within("both sides say the same", patience, |state| {
            let mut found: Vec<String> =
                self.places.iter().flat_map(|place| in_step::differences(state, place)).collect();
            found.retain(|difference| !tolerated(difference));
            if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
        })
        .await;
    }

    /// What the service asked of Graph and ARM since the list was emptied.
    pub(crate) async fn calls(&self) -> Vec<Call> {
        self.emulator.calls_of(CLIENT_ID).await
    }

    /// What is put aside: subject and reason.
    pub(crate) fn parked(&self) -> Vec<(String, String)> {
        let output = self.service.command(&["parked"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let lines: Vec<&str> = said.lines().collect();
        let rows = lines[..lines.len().saturating_sub(1)].chunks(2);
        rows.map(|row| (row[0].trim().to_owned(), row.get(1).map_or("", |why| why.trim()).to_owned()))
            .collect()
    }

    /// How every story ends: in step, nothing parked, no fault left, and quiet.
    pub(crate) async fn ends(&self) {
        self.ends_but(|_| false).await;
        assert_eq!(self.parked(), [], "nothing is parked");
    }

    /// The same where some differences stay; what is parked is the story's to judge.
    pub(crate) async fn ends_but(&self, tolerated: impl Fn(&str) -> bool) {
        self.in_step_but(PATIENCE, &tolerated).await;
        self.quiet().await;
        // What was begun when the sides became equal has ended by now.
        self.in_step_but(Duration::ZERO, &tolerated).await;
        let state = self.emulator.state().await;
        assert_eq!(state.0["faults"], json!([]), "every fault was met");
    }

    /// Both pollers of every place come round a few times, and nobody writes. What was under way may still end.
    pub(crate) async fn quiet(&self) {
        let start = Instant::now();
        loop {
            self.emulator.forget_calls().await;
            until("the pollers come round", self.rounds, || async {
                let calls = self.calls().await;
                let rounds = |side: &str| {
                    calls
                        .iter()
                        .filter(|call| call.service == side && call.is_list() && !call.is_alert_list())
                        .count()
                };
                let wanted = QUIET_ROUNDS * self.places.len();
                let found = [rounds("graph"), rounds("arm")];
                let lacks = found.iter().zip(self.polled).any(|(rounds, polled)| polled && *rounds < wanted);
                if lacks { Err(format!("{found:?} polls of {wanted}")) } else { Ok(()) }
            })
            .await;
            let calls = self.calls().await;
            let writes: Vec<_> = calls.iter().filter(|call| call.is_write()).collect();
            if writes.is_empty() {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "it goes on writing although both sides are equal: {writes:?}\n{}",
                self.service.log_tail()
            );
        }
    }
}

/// What of the expected members an object does not show. Text is compared exactly, `null` also stands for absence, and
/// an object is compared member by member.
fn lacking(object: &Value, expected: &Value) -> Result<(), String> {
    for (member, expected) in expected.as_object().expect("what is expected is an object") {
        let found = &object[member];
        if expected.is_object() {
            lacking(found, expected)?;
        } else if found != expected {
            return Err(format!("{member} is {found}, not {expected}"));
        }
    }
    Ok(())
}

/// An incident as Defender raises it: nobody's yet.
pub(crate) fn fresh(title: &str) -> Value {
    json!({
        "displayName": title, "description": format!("What happened: {title}"), "severity": "medium",
        "status": "active", "assignedTo": null, "customTags": ["first"],
    })
}

/// One of several.
pub(crate) type Story = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Stories that mostly wait, side by side in one test. All of them run to their end; the names of those that failed
/// are what the panic says (why is printed above it).
pub(crate) async fn side_by_side(stories: Vec<(&'static str, Story)>) {
    let running: Vec<_> = stories.into_iter().map(|(name, story)| (name, tokio::spawn(story))).collect();
    let mut failed = Vec::new();
    for (name, story) in running {
        if story.await.is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "these stories failed: {}", failed.join(", "));
}
