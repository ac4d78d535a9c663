//! The behaviours that the references leave uncertain, each with its possible values: the service under test must be
//! right under all of them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// One uncertain behaviour.
#[derive(Clone, Copy, Debug)]
pub struct Switch {
    /// The name on the control listener, in camel case.
    pub name: &'static str,
    /// The possible values; the first is the default.
    pub values: &'static [&'static str],
    /// What it decides, with the paragraph of the reference that leaves it open.
    pub meaning: &'static str,
}

/// How all switches are set.
#[derive(Clone, Debug)]
pub struct Switches {
    known: Vec<Switch>,
    set: BTreeMap<&'static str, &'static str>,
}

impl Switches {
    /// All of these, at their defaults.
    pub fn new(known: &[&[Switch]]) -> Self {
        Self { known: known.concat(), set: BTreeMap::new() }
    }

    /// Whether a switch stands at a value. Asking for a switch that does not exist is a programming error.
    pub fn is(&self, name: &str, value: &str) -> bool {
        let Some(switch) = self.known.iter().find(|switch| switch.name == name) else {
            unreachable!("no switch is called {name}");
        };
        debug_assert!(switch.values.contains(&value), "{name} cannot be {value}");
        self.set.get(name).or(switch.values.first()) == Some(&value)
    }

    /// Sets a switch. The error names what is possible.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let Some(switch) = self.known.iter().find(|switch| switch.name.eq_ignore_ascii_case(name)) else {
            let names: Vec<&str> = self.known.iter().map(|switch| switch.name).collect();
            return Err(format!("no switch is called {name:?}; there are {}", names.join(", ")));
        };
        let Some(value) = switch.values.iter().find(|known| known.eq_ignore_ascii_case(value)) else {
            return Err(format!("{name} can be {}, not {value:?}", switch.values.join(" or ")));
        };
        self.set.insert(switch.name, value);
        Ok(())
    }

    /// Names, values and meanings, for `GET /switches`.
    pub fn describe(&self) -> Value {
        let described = self.known.iter().map(|switch| {
            let value = self.set.get(switch.name).or(switch.values.first());
            (
                switch.name.to_owned(),
                json!({"value": value, "values": switch.values, "meaning": switch.meaning}),
            )
        });
        Value::Object(described.collect())
    }
}
