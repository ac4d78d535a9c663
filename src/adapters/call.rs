//! One call to one service, with everything that surrounds it: the gate, the budget, the token, the classification
//! of the answer. `graph` and `sentinel` say what to ask and how to read it; this says what became of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, IF_NONE_MATCH};
use secrecy::ExposeSecret;
use time::OffsetDateTime;
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use super::budget::{Budget, Quota, Quotas, Urgency};
use super::entra::{Token, TokenFailure, TokenSource};
use super::gate::{Gate, Pass, Reach};
use super::lenient::{self, Unreadable};
use super::transport::{Answer, Broken, Transport};
use crate::domain::failure::{Class, Effect, Failure};
use crate::domain::model::Side;
use crate::ports::{ApiObserver, Clock, Spent};
use crate::trace::{self, TracedCall};

/// How long a side that cannot be reached is left alone.
const UNREACHABLE: Duration = Duration::from_secs(15);

/// What all clients of a process share.
#[derive(Clone)]
pub struct Shared {
    /// The HTTP client.
    pub transport: Transport,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Who watches.
    pub observer: Arc<dyn ApiObserver>,
    /// The request budgets.
    pub quotas: Arc<Quotas>,
}

/// The peculiarities of a service.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) side: Side,
    /// For sentences: `Graph`, `Azure Resource Manager`.
    pub(crate) name: &'static str,
    /// Sent with every request.
    pub(crate) headers: &'static [(&'static str, &'static str)],
    /// The header for our own id of a request.
    pub(crate) id_header: &'static str,
    /// What a 404 on one incident means, by its error code.
    pub(crate) missing: fn(Option<&str>) -> Missing,
    /// Whether a refusal speaks of our role rather than of this one incident.
    pub(crate) speaks_of_role: fn(&ServiceError) -> bool,
    /// What to do about a missing role.
    pub(crate) cure: &'static str,
    /// What to check when even the list is not there.
    pub(crate) not_there: &'static str,
}

/// What is missing, when the service says 404.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The incident.
    Incident,
    /// What it lives in, or something unclear: ask for the list to find out.
    Unclear,
}

/// An error body, as far as it can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServiceError {
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
}

/// One request. With a body it is a write.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) operation: &'static str,
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) urgency: Urgency,
    /// It reads the list, so that its refusal needs no further probe.
    pub(crate) list: bool,
    /// It makes something that is not there yet.
    pub(crate) only_new: bool,
}

impl Call {
    pub(crate) fn read(operation: &'static str, url: Url) -> Self {
        let (urgency, list, only_new) = (Urgency::Job, false, false);
        Self { operation, method: Method::GET, url, body: None, urgency, list, only_new }
    }

    pub(crate) fn poll(operation: &'static str, url: Url) -> Self {
        Self { urgency: Urgency::Poll, list: true, ..Self::read(operation, url) }
    }

    pub(crate) fn write(operation: &'static str, method: Method, url: Url, body: Vec<u8>) -> Self {
        Self { method, body: Some(body), ..Self::read(operation, url) }
    }
}

/// Calls in one name to one scope.
pub(crate) struct Caller {
    service: &'static Service,
    scope: String,
    audience: String,
    probe: Url,
    tokens: Arc<TokenSource>,
    shared: Shared,
    quota: Arc<Quota>,
    gate: Gate,
    /// When the last probe of the list was served. Locked while one is under way.
    probed: tokio::sync::Mutex<Option<Instant>>,
    told: Mutex<Option<Result<OffsetDateTime, String>>>,
}

enum Probe {
    Served,
    Refused(String),
    Unclear,
}

impl Caller {
    pub(crate) fn new(
        service: &'static Service,
        scope: String,
        audience: String,
        probe: Url,
        tokens: Arc<TokenSource>,
        quota: Arc<Quota>,
        shared: Shared,
    ) -> Self {
        let gate =
            Gate::new(service.side, scope.clone(), Arc::clone(&shared.clock), Arc::clone(&shared.observer));
        Self {
            service,
            scope,
            audience,
            probe,
            tokens,
            shared,
            quota,
            gate,
            probed: tokio::sync::Mutex::default(),
            told: Mutex::default(),
        }
    }

    /// Makes the call. `Ok` is a success with a body that is not a gateway's page, or a 404 that means the incident.
    pub(crate) async fn send(&self, call: Call) -> Result<Answer, Failure> {
        let write = call.body.is_some();
        let throttled = self.quota.throttle.until();
        self.gate.throttled(throttled);
        if let Some(until) = throttled {
            let wait = until.saturating_duration_since(Instant::now());
            let message = format!("{} asked us to wait", self.service.name);
            return Err(self.failure(Class::Retry { wait: Some(wait) }, "throttled", message, Effect::None));
        }
        let pass = self
            .gate
            .enter(write)
            .map_err(|shut| self.failure(Class::Auth, "held", shut.why, Effect::None))?;
        let started = Instant::now();
        let answer = match self.attempt(&call).await {
            Ok(answer) => answer,
            Err(failure) => {
                if failure.class == Class::Auth {
                    self.gate.refuse(Reach::All, &failure.message);
                }
                return Err(failure);
            }
        };
        match answer.status {
            200..=299 if answer.is_page() => Err(self.gateways_page(&call, &answer)),
            200..=299 => {
                self.quota.throttle.calm();
                pass.passed();
                Ok(answer)
            }
            401 | 403 => Err(self.refused(&call, &answer, pass, started).await),
            404 => self.missing(&call, answer, pass, started).await,
            status @ (429 | 503) => {
                let guess = Duration::from_secs(if status == 429 { 5 } else { 1 });
                let told = answer.retry_after(self.shared.clock.now());
                let wait = self.quota.throttle.close(told, guess);
                self.gate.throttled(self.quota.throttle.until());
                let effect = effect_of(status, write);
                let class = Class::Retry { wait: Some(wait) };
                Err(self.failure(class, "throttled", self.describe(&call, &answer), effect))
            }
            300..=399 => Err(self.gateways_page(&call, &answer)),
            status => {
                // Anything else was said by somebody who had let us in.
                if status < 500 {
                    pass.passed();
                }
                let wait = answer.retry_after(self.shared.clock.now());
                Err(self.failure(
                    Class::of_status(status, wait),
                    &format!("status-{status}"),
                    self.describe(&call, &answer),
                    effect_of(status, write),
                ))
            }
        }
    }

    /// Makes a call whose refusal says nothing of anything else: no gate, no probe. `Ok` is any answer by the service
    /// that asks us neither to wait nor to come again.
    pub(crate) async fn alone(&self, call: &Call) -> Result<Answer, Failure> {
        let write = call.body.is_some();
        if let Some(until) = self.quota.throttle.until() {
            let wait = until.saturating_duration_since(Instant::now());
            let message = format!("{} asked us to wait", self.service.name);
            return Err(self.failure(Class::Retry { wait: Some(wait) }, "throttled", message, Effect::None));
        }
        let answer = self.attempt(call).await?;
        match answer.status {
            429 | 503 => {
                let told = answer.retry_after(self.shared.clock.now());
                let wait = self.quota.throttle.close(told, Duration::from_secs(5));
                let class = Class::Retry { wait: Some(wait) };
                let said = self.describe(call, &answer);
                Err(self.failure(class, "throttled", said, effect_of(answer.status, write)))
            }
            500..=599 => Err(self.refusal(call, &answer)),
            300..=399 => Err(self.gateways_page(call, &answer)),
            _ if answer.is_page() => Err(self.gateways_page(call, &answer)),
            _ => {
                self.quota.throttle.calm();
                Ok(answer)
            }
        }
    }

    /// What a refusal of [`Caller::alone`] means.
    pub(crate) fn refusal(&self, call: &Call, answer: &Answer) -> Failure {
        let (status, write) = (answer.status, call.body.is_some());
        let class = Class::of_status(status, answer.retry_after(self.shared.clock.now()));
        self.failure(
            class,
            &format!("status-{status}"),
            self.describe(call, answer),
            effect_of(status, write),
        )
    }

    /// How long our own budget would make a call wait that is asked for now. Pays for nothing.
    pub(crate) fn spent(&self) -> Spent {
        let wait = |budget: &Budget| budget.outlook(Urgency::Job);
        Spent { reads: wait(&self.quota.reads), writes: wait(&self.quota.writes) }
    }

    /// A success whose body cannot be used. For a write nobody knows what it says; a record that is read and lacks
    /// what we need is for a person to look at.
    pub(crate) fn unreadable(&self, write: bool, why: &Unreadable) -> Failure {
        let (class, why) = match why {
            Unreadable::Lacking(why) if !write => (Class::Permanent, why),
            Unreadable::Lacking(why) | Unreadable::Garbled(why) => (Class::Retry { wait: None }, why),
        };
        let why = lenient::sentence(why, 200);
        let message = format!("{} answered something unreadable: {why}", self.service.name);
        self.failure(class, "unreadable", message, after(write))
    }

    /// A request that is wrong before it is sent.
    pub(crate) fn never(&self, code: &str, message: String) -> Failure {
        self.failure(Class::Permanent, code, message, Effect::None)
    }

    /// An answer of refusal that the client itself has to name.
    pub(crate) fn status_failure(&self, answer: &Answer, what: &str) -> Failure {
        let message = format!("{what}{}", ids(answer));
        self.failure(
            Class::of_status(answer.status, None),
            &format!("status-{}", answer.status),
            message,
            Effect::None,
        )
    }

    /// Follows a link of a list only to where the list came from: the token goes with it.
    pub(crate) fn next_page(&self, base: &Url, next: &str) -> Result<Url, Failure> {
        let url = Url::parse(next).map_err(|error| {
            self.never("foreign-link", format!("the next page's link is no URL: {error}"))
        })?;
        let named = !url.username().is_empty() || url.password().is_some();
        if url.origin() != base.origin() || !url.origin().is_tuple() || named {
            let host = lenient::sentence(&url.origin().ascii_serialization(), 100);
            let ours = base.origin().ascii_serialization();
            let message =
                format!("the next page's link leads to {host} instead of {ours}; no token was sent there");
            return Err(self.never("foreign-link", message));
        }
        Ok(url)
    }

    async fn attempt(&self, call: &Call) -> Result<Answer, Failure> {
        let (token, stale_because) =
            self.tokens.token(&self.audience).await.map_err(|failure| self.no_token(failure))?;
        self.tell_token(match stale_because {
            None => Ok(token.expires),
            Some(why) => Err(why),
        });
        let answer = self.once(call, &token).await?;
        if answer.status != 401 {
            return Ok(answer);
        }
        match self.tokens.renew(&self.audience, token.number).await {
            Ok(Some(fresh)) => {
                self.tell_token(Ok(fresh.expires));
                self.once(call, &fresh).await
            }
            Ok(None) => Ok(answer),
            Err(failure) => Err(self.no_token(failure)),
        }
    }

    async fn once(&self, call: &Call, token: &Token) -> Result<Answer, Failure> {
        let write = call.body.is_some();
        let budget = if write { &self.quota.writes } else { &self.quota.reads };
        budget.take(call.urgency).await.map_err(|wait| {
            let message = format!("our own budget of calls to {} is spent for now", self.service.name);
            self.failure(Class::Retry { wait: Some(wait) }, "budget", message, Effect::None)
        })?;
        let id = Uuid::new_v4().to_string();
        let mut request = self
            .shared
            .transport
            .request(call.method.clone(), call.url.clone())
            .bearer_auth(token.bearer.expose_secret())
            .header(ACCEPT, "application/json")
            .header(self.service.id_header, &id);
        for (name, value) in self.service.headers {
            request = request.header(*name, *value);
        }
        if call.only_new {
            request = request.header(IF_NONE_MATCH, "*");
        }
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        let (at, started) = (self.shared.clock.now(), Instant::now());
        let outcome = self.shared.transport.send(request).await;
        let status = outcome.as_ref().ok().map(|answer| answer.status);
        self.shared.observer.called(
            self.service.side,
            &self.scope,
            call.operation,
            status,
            started.elapsed(),
        );
        let said = outcome.as_ref().map(Answer::request_ids).unwrap_or_default();
        trace::note(TracedCall {
            at,
            side: self.service.side,
            operation: call.operation,
            status,
            ids: said.into_iter().chain([(self.service.id_header, id.clone())]).collect(),
            took_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        let retry = Class::Retry { wait: None };
        let name = self.service.name;
        match outcome {
            Ok(answer) if answer.too_large && answer.is_success() => {
                // It would be as large the next time. A write has landed, and is seen by the next read.
                let class = if write { retry } else { Class::Permanent };
                let message = format!("the answer of {name} to {} is too large to be read", call.operation);
                Err(self.failure(class, "too-large", message, after(write)))
            }
            Ok(answer) => Ok(answer),
            Err(Broken::NotSent(why)) => {
                // Nothing of the side can be reached: no job is to blame, and none needs to be tried before it can be.
                let retry = Class::Retry { wait: Some(UNREACHABLE) };
                Err(self.failure(retry, "connect", format!("{name} cannot be reached: {why}"), Effect::None))
            }
            Err(Broken::TimedOut) => {
                let message = format!(
                    "{name} did not answer {} in time ({} {id})",
                    call.operation, self.service.id_header
                );
                Err(self.failure(retry, "timeout", message, after(write)))
            }
            Err(Broken::Cut(why)) => {
                let message =
                    format!("the connection to {name} broke: {why} ({} {id})", self.service.id_header);
                Err(self.failure(retry, "cut", message, after(write)))
            }
        }
    }

    /// 401 or 403 with a fresh token: the side's trouble, or this incident's?
    async fn refused(&self, call: &Call, answer: &Answer, mut pass: Pass<'_>, started: Instant) -> Failure {
        let said = self.describe(call, answer);
        let sentence = format!("{said}; {}", self.service.cure);
        if call.list {
            self.gate.refuse(Reach::All, &sentence);
            return self.failure(Class::Auth, "refused", sentence, Effect::None);
        }
        match self.look(started, pass.is_probe()).await {
            Probe::Served => {
                pass.passed_to_read();
                if call.body.is_some() && (self.service.speaks_of_role)(&ServiceError::of(answer)) {
                    let sentence = format!("reading is allowed, writing is not: {sentence}");
                    self.gate.refuse(Reach::Writes, &sentence);
                    return self.failure(Class::Auth, "refused", sentence, Effect::None);
                }
                if answer.status == 401 {
                    // It speaks of the token, which the list has just taken: a stumble, not this incident's fault.
                    let class = Class::Retry { wait: None };
                    return self.failure(class, "status-401", said, Effect::None);
                }
                let sentence = format!("this one incident is refused to us: {said}");
                self.failure(Class::Permanent, "forbidden", sentence, Effect::None)
            }
            Probe::Refused(_) => {
                self.gate.refuse(Reach::All, &sentence);
                self.failure(Class::Auth, "refused", sentence, Effect::None)
            }
            Probe::Unclear => self.failure(Class::Auth, "refused", sentence, Effect::None),
        }
    }

    async fn missing(
        &self,
        call: &Call,
        answer: Answer,
        mut pass: Pass<'_>,
        started: Instant,
    ) -> Result<Answer, Failure> {
        let code = ServiceError::of(&answer).code;
        let nowhere = |why: String| {
            self.gate.refuse(Reach::All, &why);
            self.failure(Class::Auth, "not-there", why, Effect::None)
        };
        if call.list {
            return Err(nowhere(format!("{}; {}", self.describe(call, &answer), self.service.not_there)));
        }
        if (self.service.missing)(code.as_deref()) == Missing::Incident {
            pass.passed();
            return Ok(answer);
        }
        match self.look(started, pass.is_probe()).await {
            Probe::Served => {
                pass.passed_to_read();
                // Only somebody who speaks the service's language may say that an incident is gone.
                if code.is_some() { Ok(answer) } else { Err(self.gateways_page(call, &answer)) }
            }
            Probe::Refused(why) => Err(nowhere(why)),
            Probe::Unclear => Err(self.gateways_page(call, &answer)),
        }
    }

    /// Reads the shortest list. One at a time; a look that somebody had after `since` counts for us too.
    async fn look(&self, since: Instant, we_hold_the_probe: bool) -> Probe {
        let mut last = self.probed.lock().await;
        if last.is_some_and(|at| at >= since) {
            return Probe::Served;
        }
        if !we_hold_the_probe && let Some(why) = self.gate.shut() {
            return Probe::Refused(why);
        }
        let call = Call { list: true, ..Call::read("probe", self.probe.clone()) };
        match self.attempt(&call).await {
            Ok(answer) if answer.is_success() && !answer.is_page() => {
                *last = Some(Instant::now());
                Probe::Served
            }
            Ok(answer) if matches!(answer.status, 401 | 403) => {
                Probe::Refused(format!("{}; {}", self.describe(&call, &answer), self.service.cure))
            }
            Ok(answer) if answer.status == 404 => {
                Probe::Refused(format!("{}; {}", self.describe(&call, &answer), self.service.not_there))
            }
            Err(failure) if failure.class == Class::Auth => Probe::Refused(failure.message),
            Ok(_) | Err(_) => Probe::Unclear,
        }
    }

    fn gateways_page(&self, call: &Call, answer: &Answer) -> Failure {
        let message = format!(
            "{} was answered {} by something that is not {}: a proxy or gateway in between?{}",
            call.operation,
            answer.status,
            self.service.name,
            ids(answer)
        );
        self.failure(Class::Retry { wait: None }, "gateway", message, after(call.body.is_some()))
    }

    fn no_token(&self, failure: TokenFailure) -> Failure {
        self.tell_token(Err(failure.message.clone()));
        self.failure(failure.class, failure.code, failure.message, Effect::None)
    }

    /// Tells the observer of the token's state when it changes.
    fn tell_token(&self, outcome: Result<OffsetDateTime, String>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.as_ref() != Some(&outcome) {
            let words = outcome.as_ref().map(|expires| *expires).map_err(String::as_str);
            self.shared.observer.token(self.service.side, &self.scope, words);
            *told = Some(outcome);
        }
    }

    fn describe(&self, call: &Call, answer: &Answer) -> String {
        let name = self.service.name;
        if answer.is_page() {
            return format!(
                "{} was answered {} with a web page{}",
                call.operation,
                answer.status,
                ids(answer)
            );
        }
        let error = ServiceError::of(answer);
        let mut sentence = format!("{name} answered {} to {}", answer.status, call.operation);
        if let Some(code) = &error.code {
            sentence = format!("{sentence}, {code}");
        }
        if let Some(message) = &error.message {
            sentence = format!("{sentence}: {message}");
        }
        sentence + &ids(answer)
    }

    fn failure(&self, class: Class, code: &str, message: String, effect: Effect) -> Failure {
        Failure { class, side: Some(self.service.side), code: code.to_owned(), message, effect }
    }
}

fn ids(answer: &Answer) -> String {
    let ids: Vec<String> = answer.request_ids().iter().map(|(name, id)| format!("{name} {id}")).collect();
    if ids.is_empty() { String::new() } else { format!(" ({})", ids.join(", ")) }
}

/// A write whose answer did not come, or cannot be read, may have landed.
fn after(write: bool) -> Effect {
    if write { Effect::Unknown } else { Effect::None }
}

fn effect_of(status: u16, write: bool) -> Effect {
    match status {
        408 | 500..=599 if status != 501 => after(write),
        _ => Effect::None,
    }
}

impl ServiceError {
    /// Reads `{"error": {"code", "message"}}`, and the same without its envelope.
    pub(crate) fn of(answer: &Answer) -> Self {
        let Ok(body) = lenient::object(&lenient::text_of(&answer.body)) else { return Self::default() };
        let error = body.get("error").and_then(|error| error.as_object()).unwrap_or(&body);
        Self {
            code: lenient::text(error, "code").map(|code| lenient::sentence(&code, 100)),
            message: lenient::text(error, "message").map(|message| lenient::sentence(&message, 300)),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A clock that stands, an observer that remembers.

    use super::*;

    pub(crate) struct FixedClock(pub(crate) Mutex<OffsetDateTime>);

    impl Default for FixedClock {
        fn default() -> Self {
            Self(Mutex::new(time::macros::datetime!(2026-03-04 10:22:15 UTC)))
        }
    }

    impl Clock for FixedClock {
        fn now(&self) -> OffsetDateTime {
            *self.0.lock().unwrap()
        }
    }

    #[derive(Default)]
    pub(crate) struct Notes {
        pub(crate) lines: Mutex<Vec<String>>,
    }

    impl Notes {
        pub(crate) fn gates(&self) -> Vec<String> {
            let lines = self.lines.lock().unwrap();
            lines.iter().filter_map(|line| line.strip_prefix("gate ").map(str::to_owned)).collect()
        }

        pub(crate) fn calls(&self) -> Vec<String> {
            let lines = self.lines.lock().unwrap();
            lines.iter().filter_map(|line| line.strip_prefix("call ").map(str::to_owned)).collect()
        }

        pub(crate) fn tokens(&self) -> Vec<String> {
            let lines = self.lines.lock().unwrap();
            lines.iter().filter_map(|line| line.strip_prefix("token ").map(str::to_owned)).collect()
        }
    }

    impl ApiObserver for Notes {
        fn called(&self, _: Side, _: &str, operation: &'static str, status: Option<u16>, _: Duration) {
            let status = status.map_or("broken".to_owned(), |status| status.to_string());
            self.lines.lock().unwrap().push(format!("call {operation} {status}"));
        }

        fn gate(&self, _: Side, _: &str, closed: Option<(&str, OffsetDateTime)>) {
            let line = closed.map_or("gate open".to_owned(), |(why, _)| format!("gate closed: {why}"));
            self.lines.lock().unwrap().push(line);
        }

        fn token(&self, _: Side, _: &str, outcome: Result<OffsetDateTime, &str>) {
            let line = outcome.map_or_else(|why| format!("token failed: {why}"), |_| "token ok".to_owned());
            self.lines.lock().unwrap().push(line);
        }
    }
}
