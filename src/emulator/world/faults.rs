//! Trouble on order: each fault waits for calls that it fits and spoils them.

use serde_json::{Value, json};

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Answered with this status instead of being handled.
    Status,
    /// The connection ends before the call is handled.
    DropBefore,
    /// The call is handled; then the connection ends without an answer.
    DropAfter,
    /// Handled after this long.
    Delay,
    /// A GET that sees every object as it was before its last change.
    StaleRead,
    /// A gateway's HTML page instead of an answer.
    Html,
}

impl Kind {
    const ALL: [(&'static str, Kind); 6] = [
        ("status", Kind::Status),
        ("drop-before", Kind::DropBefore),
        ("drop-after", Kind::DropAfter),
        ("delay", Kind::Delay),
        ("stale-read", Kind::StaleRead),
        ("html", Kind::Html),
    ];
}

/// One ordered fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Its id, as `GET /calls` names it.
    pub id: String,
    service: String,
    method: Option<String>,
    path_contains: Option<String>,
    body_contains: Option<String>,
    /// How many calls it still spoils.
    pub times: u64,
    /// What it does.
    pub kind: Kind,
    /// For `status` and `html`.
    pub status: u16,
    /// `Retry-After` of the answer, as it is sent.
    pub retry_after: Option<String>,
    /// For `delay`, in milliseconds.
    pub delay_ms: u64,
}

impl Fault {
    /// As `GET /state` shows it.
    pub fn describe(&self) -> Value {
        let kind = Kind::ALL.iter().find(|(_, kind)| *kind == self.kind).map(|(name, _)| *name);
        json!({
            "id": self.id, "service": self.service, "method": self.method, "pathContains": self.path_contains,
            "bodyContains": self.body_contains, "times": self.times, "kind": kind, "status": self.status, "retryAfter": self.retry_after,
            "delayMs": self.delay_ms,
        })
    }
}

/// All faults that are left, in the order in which they were ordered.
#[derive(Debug, Default)]
pub struct Faults {
    list: Vec<Fault>,
    made: u64,
}

const MEMBERS: [&str; 9] =
    ["service", "method", "pathContains", "bodyContains", "times", "kind", "status", "retryAfter", "delayMs"];

impl Faults {
    /// Reads an order. The error names the member and the cure.
    pub fn order(&mut self, order: &Value) -> Result<String, String> {
        let members = order.as_object().ok_or("a fault is a JSON object")?;
        if let Some(name) = members.keys().find(|name| !MEMBERS.contains(&name.as_str())) {
            return Err(format!("a fault has no member {name:?}; it has {}", MEMBERS.join(", ")));
        }
        let text = |name: &str| match order.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(format!("{name} is a text")),
        };
        let number = |name: &str, default: u64, least: u64, most: u64| match order.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value
                .as_u64()
                .filter(|number| (least..=most).contains(number))
                .ok_or_else(|| format!("{name} is a whole number from {least} to {most}")),
        };
        let service = text("service")?.unwrap_or_default();
        if !["login", "graph", "arm", "ingestion"].contains(&service.as_str()) {
            return Err("service is login, graph, arm or ingestion".to_owned());
        }
        let kind = text("kind")?.unwrap_or_default();
        let Some((_, kind)) = Kind::ALL.into_iter().find(|(name, _)| *name == kind) else {
            return Err(format!("kind is {}", Kind::ALL.map(|(name, _)| name).join(", ")));
        };
        if kind == Kind::Status && order.get("status").is_none() {
            return Err("status is missing: the HTTP status to answer with".to_owned());
        }
        let default_status = if kind == Kind::Html { 502 } else { 500 };
        let retry_after = match order.get("retryAfter") {
            None | Some(Value::Null) => None,
            Some(Value::Number(seconds)) => Some(seconds.to_string()),
            Some(Value::String(text)) => Some(text.clone()),
            Some(_) => return Err("retryAfter is a number of seconds, or the header's text".to_owned()),
        };
        let fault = Fault {
            id: format!("fault-{}", self.made + 1),
            service,
            method: text("method")?.map(|method| method.to_uppercase()),
            path_contains: text("pathContains")?,
            body_contains: text("bodyContains")?,
            times: number("times", 1, 1, 1_000_000)?,
            kind,
            status: u16::try_from(number("status", default_status, 100, 599)?).unwrap_or(500),
            retry_after,
            delay_ms: number("delayMs", 1_000, 0, 600_000)?,
        };
        self.made += 1;
        let id = fault.id.clone();
        self.list.push(fault);
        Ok(id)
    }

    /// Whether a fault waits for a word in the body of a call.
    pub fn read_bodies(&self) -> bool {
        self.list.iter().any(|fault| fault.body_contains.is_some())
    }

    /// The first fault that fits this call; it is used up by one. `target` is path and query, and the body matters only
    /// where [`Faults::read_bodies`] says so.
    pub fn strike(&mut self, service: &str, method: &str, target: &str, body: &[u8]) -> Option<Fault> {
        let says = |part: &str| body.windows(part.len().max(1)).any(|window| window == part.as_bytes());
        let index = self.list.iter().position(|fault| {
            fault.service == service
                && fault.method.as_ref().is_none_or(|wanted| wanted == method)
                && fault.path_contains.as_ref().is_none_or(|part| target.contains(part.as_str()))
                && fault.body_contains.as_ref().is_none_or(|part| says(part))
        })?;
        let fault = &mut self.list[index];
        fault.times -= 1;
        let struck = fault.clone();
        if struck.times == 0 {
            self.list.remove(index);
        }
        Some(struck)
    }

    /// What is left.
    pub fn left(&self) -> &[Fault] {
        &self.list
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.list.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_fits_strikes_as_often_as_ordered() {
        let mut faults = Faults::default();
        faults
            .order(&json!({"service": "arm", "method": "put", "kind": "drop-after", "times": 2}))
            .expect("good");
        faults
            .order(&json!({"service": "arm", "kind": "status", "status": 503, "retryAfter": 1.5}))
            .expect("good");
        assert_eq!(faults.strike("graph", "PUT", "/x", b""), None);
        assert_eq!(faults.strike("arm", "PUT", "/x", b"").expect("first").kind, Kind::DropAfter);
        let second = faults.strike("arm", "GET", "/x", b"").expect("second");
        assert_eq!((second.status, second.retry_after.as_deref()), (503, Some("1.5")));
        assert_eq!(faults.strike("arm", "PUT", "/x", b"").expect("first again").kind, Kind::DropAfter);
        assert!(faults.left().is_empty());
        let of_a_word =
            json!({"service": "graph", "kind": "status", "status": 400, "bodyContains": "\"phishing\""});
        faults.order(&of_a_word).expect("good");
        assert!(faults.read_bodies());
        assert_eq!(faults.strike("graph", "PATCH", "/x", br#"{"determination":"malware"}"#), None);
        assert!(faults.strike("graph", "PATCH", "/x", br#"{"determination":"phishing"}"#).is_some());
        assert!(!faults.read_bodies());
    }

    #[test]
    fn a_wrong_order_names_the_member() {
        let mut faults = Faults::default();
        for (order, expected) in [
            (json!([]), "a fault is a JSON object"),
            (json!({"kind": "html"}), "service is login"),
            (json!({"service": "arm"}), "kind is status, drop-before"),
            (json!({"service": "arm", "kind": "status"}), "status is missing"),
            (json!({"service": "arm", "kind": "html", "times": 0}), "times is a whole number from 1"),
            (json!({"service": "arm", "kind": "html", "path": "/x"}), "no member \"path\""),
        ] {
            let error = faults.order(&order).expect_err("wrong");
            assert!(error.contains(expected), "{error}");
        }
        assert!(faults.left().is_empty());
    }
}
