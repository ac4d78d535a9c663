//! The configuration: every text is read or refused with a place in it, and no file is opened but through the reader.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use lockstep::config::Config;

fuzz_target!(|text: &str| {
    if let Err(errors) =
        Config::parse(text, &BTreeMap::new(), &|_| Ok("-----BEGIN CERTIFICATE-----".to_owned()))
    {
        let lines = text.lines().count() + 1;
        assert!(!errors.problems.is_empty());
        for problem in &errors.problems {
            assert!(problem.place.is_none_or(|(line, column)| (1..=lines).contains(&line) && column >= 1));
        }
        let _ = errors.to_string();
    }
});
