//! What no file of the repository may hold, and whether the documents speak of what is there.

use std::collections::BTreeSet;

/// Documents whose links are followed.
const DOCUMENTS: &[&str] = &["README.md", "ARCHITECTURE.md", "deploy/README.md"];
/// Variables that tests read and the program does not.
const FOR_TESTS: &[&str] = &["LOCKSTEP_TEST_POSTGRES", "LOCKSTEP_LAWS", "LOCKSTEP_SEED", "LOCKSTEP_SEEDS"];

#[test]
fn no_file_names_a_folder_of_somebodys_machine() {
    // Put together here, so that this file does not hold them.
    let folders = [["/wo", "rk/"].concat(), ["/ro", "ot/"].concat(), ["/Us", "ers/"].concat()];
    let mut wrong = Vec::new();
    for path in crate::files(".") {
        let bytes = std::fs::read(crate::root().join(&path)).expect("a file that was listed can be read");
        let Ok(text) = String::from_utf8(bytes) else { continue };
        for (number, line) in text.lines().enumerate() {
            for folder in &folders {
                // After a name it is part of a longer path or of a URL.
                let alone = line.match_indices(folder.as_str()).any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || "._-}".contains(c))
                });
                // A checkout's own link to its repository.
                if alone && path.to_str() != Some(".git") {
                    wrong.push(format!("{}:{}: {folder}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn nothing_is_ignored_or_left_to_do() {
    let words = [["#[ig", "nore"].concat(), ["to", "do!("].concat(), ["unimpl", "emented!("].concat()];
    // What needs a server, and these two in full: each takes more time than an everyday run has. Nothing joins them
    // without a change here. The test script runs all of them.
    let allowed = [
        "needs PostgreSQL: run scripts/test",
        "takes a minute or two: scripts/test runs it\"]",
        "waits for more than a minute: scripts/test runs it\"]",
        "a vanished incident is looked for over half a minute: scripts/test runs it\"]",
    ]
    .map(|reason| format!("{} = \"{reason}", words[0]));
    let (mut long, mut seen) = (0, 0);
    assert!(
        crate::read("scripts/test").contains("ignored"),
        "the test script runs what is left out elsewhere"
    );
    let mut wrong = Vec::new();
    let sources = ["src", "tests"].into_iter().flat_map(crate::files);
    for path in sources.filter(|path| path.extension().is_some_and(|extension| extension == "rs")) {
        let text = crate::read(&path.to_string_lossy());
        for (number, line) in text.lines().enumerate() {
            let reason = allowed.iter().position(|allowed| line.contains(allowed.as_str()));
            seen += usize::from(reason.is_some());
            long += usize::from(reason.is_some_and(|reason| reason > 0));
            if words.iter().any(|word| line.contains(word.as_str())) && reason.is_none() {
                wrong.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    assert!(seen > long, "the PostgreSQL tests were not seen");
    assert_eq!(long, 3, "tests that are left to the script for their length");
}

#[test]
fn documents_link_to_files_that_are_there() {
    let mut wrong = Vec::new();
    let mut followed = 0;
    for document in DOCUMENTS {
        let text = crate::read(document);
        let folder = crate::root().join(document);
        let folder = folder.parent().expect("a document lies in a folder");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            followed += 1;
            if !folder.join(path).exists() {
                wrong.push(format!("{document} links to {path}, which is not there"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    assert!(followed > 5, "only {followed} links were found");
}

/// What the program reads is in the README, and what the README names is read.
#[test]
fn the_readme_names_exactly_the_environment_that_is_read() {
    let readme = crate::read("README.md");
    let named: BTreeSet<&str> = readme
        .split(|c: char| !(c.is_ascii_uppercase() || c == '_'))
        .filter(|word| word.starts_with("LOCKSTEP_") && word.len() > "LOCKSTEP_".len())
        .filter(|word| !FOR_TESTS.contains(word))
        .collect();
    let read = lockstep::config::VARIABLES.iter().map(|(name, _)| *name).collect();
    assert_eq!(named, read);
}
