//! What both benches of engines have: a process for each engine, regions of the README, and what the machine says of itself.

#![allow(dead_code, reason = "no bench uses all of it")]

pub mod bandwidth;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::{Serialize, de::DeserializeOwned};

use crate::common::save_whole;

/// What an engine's process must not inherit: tables are for the allocator and the BLAS settings that a user gets.
pub const NOT_INHERITED: [&str; 4] = ["LD_PRELOAD", "GLIBC_TUNABLES", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"];

/// A process that answers each line of JSON by one. It says one before it is asked, when it is ready.
pub struct Process {
    child: Child,
    /// Closed when the process is to leave.
    ask: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
    /// What it says on stderr, to be quoted if it dies.
    complaints: PathBuf,
}

impl Process {
    pub fn start(command: &mut Command, complaints: PathBuf) -> Result<Self> {
        let stderr = fs::File::create(&complaints)?;
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        let (ask, stdout) = (child.stdin.take(), child.stdout.take().context("no stdout")?);
        Ok(Process { child, ask, replies: BufReader::new(stdout), complaints })
    }

    pub fn ask<R: DeserializeOwned>(&mut self, ask: &impl Serialize) -> Result<R> {
        let line = serde_json::to_string(ask)? + "\n";
        // A broken pipe means that it died; `reply` says why.
        self.ask.as_mut().context("it is leaving")?.write_all(line.as_bytes()).ok();
        self.reply()
    }

    pub fn reply<R: DeserializeOwned>(&mut self) -> Result<R> {
        let mut line = String::new();
        self.replies.read_line(&mut line)?;
        if line.is_empty() {
            let status = self.child.wait()?;
            let said = fs::read_to_string(&self.complaints).unwrap_or_default();
            let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            bail!("died ({status}): {last}");
        }
        serde_json::from_str(&line).with_context(|| format!("answered {line:?}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.ask = None; // End of its input, at which it leaves.
        self.child.wait().ok();
    }
}

/// Replaces what is between two marks of a file of the repository.
pub fn write_region(file: &str, name: &str, content: &str) -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = fs::read_to_string(&path)?;
    let (begin, end) = (format!("<!-- {name}:begin -->\n"), format!("<!-- {name}:end -->"));
    let missing = || format!("{file} lacks {} … {end}", begin.trim());
    let (before, rest) = text.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&end).with_context(missing)?;
    save_whole(&path, |file| Ok(fs::write(file, format!("{before}{begin}{content}{end}{after}"))?))?;
    Ok(path)
}

/// The name of the processor.
pub fn cpu() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    model.unwrap_or("unknown CPU").into()
}

pub fn load_average() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().into()
}

/// What a program prints.
pub fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_string()
}

pub fn commit() -> String {
    said("git", &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"])
}
