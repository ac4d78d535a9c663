//! What holds for the repository as a whole and no single module can see: which module may import which, what may
//! stand in `Cargo.lock`, what no file may hold, whether the deployment files agree with the program, and whether the
//! tests that the README names are there.

mod arrows;
mod deploy;
mod hygiene;
mod lock;
mod proofs;

use std::path::{Path, PathBuf};

/// The folder with `Cargo.toml`.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the repository, which must be there.
fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every file below a folder, sorted, as paths relative to the repository. What builds leave behind is no part of it.
fn files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries {
            let entry = entry.expect("a folder that could be opened can be listed");
            let path = entry.path();
            let name = entry.file_name();
            let kind = entry.file_type().expect("an entry that was listed has a type");
            if name == "target" || name == "node_modules" || name == ".git" {
                continue;
            }
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                found.push(path.strip_prefix(root()).expect("the walk began at the root").to_owned());
            }
        }
    }
    found.sort();
    found
}
