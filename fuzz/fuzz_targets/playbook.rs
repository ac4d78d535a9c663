//! The body of a playbook: never a panic, and what is read is an object with a usable incident or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep::domain::notice::playbook;

fuzz_target!(|body: &[u8]| {
    if let Ok(notice) = playbook(body) {
        assert_eq!(body.trim_ascii_start().first(), Some(&b'{'));
        for id in notice.incident.iter().chain(&notice.version) {
            assert!((1..=512).contains(&id.len()));
        }
    }
});
