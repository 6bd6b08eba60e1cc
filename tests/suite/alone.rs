//! Tests that need a process of their own: for what is the whole process's, or of no use afterwards.

use std::process::{Command, Output};

/// Runs a test once more in a process of its own, and gives what came of it. In that process this is `None`.
pub fn alone(test: &str) -> Option<Output> {
    const ALONE: &str = "BURN_DOT_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return None;
    }
    let mut child = Command::new(std::env::current_exe().expect("this test"));
    child.args([test, "--exact", "--nocapture"]).env(ALONE, "1").env("RUST_BACKTRACE", "0");
    Some(child.output().expect("this test runs once more"))
}
