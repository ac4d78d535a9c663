//! One started program.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The program under test, as Cargo built it for this run.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_lockstep");

/// A running program. Dropping it kills it by its own process id and reaps it.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the program under test. What it says on standard error is appended to `log`; standard output as well,
    /// unless the command pipes it.
    pub(crate) fn start(arguments: &[&str], log: &Path) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).stdout(append(log));
        Self::spawn(command, log)
    }

    /// Starts the program under test and waits for the first line on its standard output.
    pub(crate) fn start_and_listen(arguments: &[&str], log: &Path, patience: Duration) -> (Self, String) {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).stdout(Stdio::piped());
        Self::spawn_and_listen(command, log, patience)
    }

    /// The same for any command whose standard output is piped.
    pub(crate) fn spawn_and_listen(command: Command, log: &Path, patience: Duration) -> (Self, String) {
        let mut process = Self::spawn(command, log);
        let stdout = process.child.stdout.take().expect("the caller piped it");
        let (say, hear) = mpsc::channel();
        // Reads on after the first line, so that the program never meets a full or a closed pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                say.send(line).ok();
            }
        });
        match hear.recv_timeout(patience) {
            Ok(line) => (process, line),
            Err(_) => panic!("no line on standard output within {patience:?}. Log:\n{}", process.log_tail()),
        }
    }

    fn spawn(mut command: Command, log: &Path) -> Self {
        unconfigured(&mut command).stdin(Stdio::null()).stderr(append(log));
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// SIGTERM, as systemd and Kubernetes send it; waits for the end and returns whether the exit code was 0.
    pub(crate) fn terminate(&mut self, patience: Duration) -> bool {
        // `Child` knows only SIGKILL.
        Command::new("kill").arg("-TERM").arg(self.id().to_string()).status().ok();
        let deadline = std::time::Instant::now() + patience;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.success(),
                Ok(None) if std::time::Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                _ => panic!("it still runs {patience:?} after SIGTERM. Log:\n{}", self.log_tail()),
            }
        }
    }

    /// The last lines of its log.
    pub(crate) fn log_tail(&self) -> String {
        log_tail(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The surroundings of the test must not configure the program.
pub(crate) fn unconfigured(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("LOCKSTEP_")) {
            command.env_remove(name);
        }
    }
    command
}

/// The last lines of a log.
pub(crate) fn log_tail(log: &Path) -> String {
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

fn append(log: &Path) -> File {
    File::options().create(true).append(true).open(log).expect("the test's own folder takes a log file")
}
