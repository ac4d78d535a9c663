//! The body of a Graph notification: never a panic, and no id that is empty or endless.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lockstep::domain::notice::{About, graph};

fuzz_target!(|body: &[u8]| {
    for item in graph(body).into_iter().flatten() {
        if let About::Incident(id) | About::Lifecycle(id) = item.about {
            assert!((1..=512).contains(&id.len()));
        }
        assert!(!item.tenant_id.bytes().any(|byte| byte.is_ascii_uppercase()));
    }
});
