//! Whether each test that the README's table "Which test proves it" names is there: a table that names what was renamed
//! or removed proves nothing.

const HEADING: &str = "### Which test proves it";

/// What a file of the repository holds, if it is there.
type Look<'l> = &'l dyn Fn(&str) -> Option<String>;

#[test]
fn every_test_that_the_readme_names_is_there() {
    let look = |path: &str| std::fs::read_to_string(crate::root().join(path)).ok();
    let (named, wrong) = check(&crate::read("README.md"), &look);
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    assert!(named > 50, "only {named} names were found");
}

/// The checker finds what it is there for.
#[test]
fn planted_names_are_found() {
    let look = |path: &str| {
        let text = match path {
            "tests/laws/main.rs" => "mod owners;\nmod empty;",
            "tests/laws/owners.rs" => {
                "#[test]\nfn they_agree() {}\nproptest! {\n    /// Said.\n    #[test]\n    fn they_hold(a in b()) {}\n}\n\
                 #[tokio::test(start_paused = true)]\n#[cfg(unix)]\nasync fn they_last() {}\nfn helper() {}"
            }
            "tests/laws/empty.rs" | "tests/laws/stray.rs" => "fn helper() {}",
            "tests/store/main.rs" => {
                "macro_rules! contract {\n    mod sqlite {\n}\ncontract! {\n    contract::they_keep,\n}"
            }
            "src/lib.rs" => "pub mod app;",
            "src/app/mod.rs" => "pub(crate) mod shadow;",
            "src/app/shadow.rs" => "#[cfg(test)]\nmod tests {\n    #[test]\n    fn it_is() {}\n}",
            _ => return None,
        };
        Some(text.to_owned())
    };
    let table =
        |cell: &str| format!("{HEADING}\n\n| what | test |\n| --- | --- |\n| `laws x` | {cell} |\n\n## Next");
    let right = "`laws owners::they_agree`, `owners::they_hold`, `owners::they_last`, `owners`, `lib app::shadow`, \
                 `store sqlite::they_keep`";
    assert_eq!(check(&table(right), &look), (6, Vec::new()));
    for cell in [
        "none",
        "`owners::they_agree`",
        "`laws owners::they_agre`",
        "`laws owners::helper`",
        "`laws owners::…_agree`",
        "`laws owner`",
        "`laws empty`",
        "`laws stray`",
        "`law owners`",
        "`store sqlite::they_kee`",
        "`store contract::they_keep`",
        "`lib shadow`",
        "`laws owners`, `app::shadow`",
    ] {
        assert_eq!(check(&table(cell), &look).1.len(), 1, "{cell}");
    }
}

/// How many tests and modules of tests the table names, and what is wrong with them. A name begins with its binary
/// (`lib` for the tests beside the code), unless that is the one of the name before it in the row.
fn check(readme: &str, look: Look<'_>) -> (usize, Vec<String>) {
    let (_, table) = readme.split_once(HEADING).expect("the README has the table");
    let rows = table.lines().map(str::trim).skip_while(|line| !line.starts_with('|'));
    let rows = rows.take_while(|line| line.starts_with('|')).skip(2);
    let (mut named, mut wrong) = (0, Vec::new());
    for row in rows {
        let (_, cell) = row.trim_end_matches('|').rsplit_once('|').expect("a row has two cells");
        let names: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            wrong.push(format!("names no test: {row}"));
        }
        let mut binary = None;
        for name in names {
            named += 1;
            let path = match name.split_once(' ') {
                Some((named, path)) => {
                    binary = Some(named);
                    path
                }
                None => name,
            };
            let judged = match binary {
                Some(binary) => judge(binary, path, look),
                None => Err("does not say which binary it is in".to_owned()),
            };
            wrong.extend(judged.err().map(|why| format!("{} `{path}`: {why}", binary.unwrap_or("?"))));
        }
    }
    (named, wrong)
}

/// Whether a module with tests, or a test, is at the end of this path.
fn judge(binary: &str, path: &str, look: Look<'_>) -> Result<(), String> {
    let (mut folder, root) = match binary {
        "lib" => ("src".to_owned(), "src/lib.rs".to_owned()),
        _ => (format!("tests/{binary}"), format!("tests/{binary}/main.rs")),
    };
    let mut text = look(&root).ok_or_else(|| format!("{root} is not there"))?;
    if let Some((suite, case)) = path.split_once("::")
        && text.lines().any(|line| line.trim() == format!("mod {suite} {{"))
    {
        // A macro makes the cases that it is given into the tests of a module of its own.
        let given = format!("::{case},");
        let found = text.lines().any(|line| line.trim().ends_with(&given));
        return if found { Ok(()) } else { Err(format!("no case {case}")) };
    }
    let mut segments = path.split("::").peekable();
    while let Some(segment) = segments.next() {
        let declared = format!("mod {segment};");
        let module = text.lines().any(|line| line.trim_start().ends_with(&declared));
        if !module && segments.peek().is_none() {
            let found = tests(&text).any(|test| test == segment);
            return if found { Ok(()) } else { Err(format!("no test or module {segment}")) };
        }
        if !module {
            return Err(format!("no module {segment}"));
        }
        folder = format!("{folder}/{segment}");
        let file = look(&format!("{folder}.rs")).or_else(|| look(&format!("{folder}/mod.rs")));
        text = file.ok_or_else(|| format!("{folder}.rs is not there"))?;
    }
    if tests(&text).next().is_some() { Ok(()) } else { Err("a module without a test".to_owned()) }
}

/// The functions of a file that are tests.
fn tests(text: &str) -> impl Iterator<Item = &str> {
    let mut marked = false;
    text.lines().map(str::trim_start).filter_map(move |line| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            return std::mem::take(&mut marked).then(|| rest.split(['(', '<']).next().unwrap_or_default());
        }
        None
    })
}
