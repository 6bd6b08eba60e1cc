//! The driver's side: which engines there are, and the process of each.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    common::Place,
    device::Speed,
    shared::{NOT_INHERITED, Process, bandwidth::Bandwidth},
    worker::{Ask, Reply},
};

/// The engine that all others are compared with.
pub const OURS: &str = "fused";
/// Yardsticks are no engines: products into memory that is reused, and loops that move as many bytes.
pub const GEMM: &str = "gemm";
pub const MEMORY: &str = "memory";
pub const YARDSTICKS: [&str; 2] = [GEMM, MEMORY];
/// Engines that compute where `--device` says; of the others these, on CUDA.
pub const BURN: [&str; 3] = [OURS, "composed", "burn"];
pub const ON_GPU: [&str; 4] = ["torch", "torch-compile", "torch-autotune", "jax"];
pub const RUST: [&str; 7] = [OURS, "composed", "burn", "candle", "ndarray", GEMM, MEMORY];
pub const PYTHON: [&str; 5] = ["torch", "torch-compile", "torch-autotune", "jax", "keras-tf"];
/// The allocator of a process that preloads none.
pub const SYSTEM: &str = "system";

/// Where and how engines run.
pub struct Launch {
    /// Python that has the other engines.
    pub python: Option<PathBuf>,
    /// The CPU where there is none.
    pub device: Option<Place>,
    pub threads: usize,
    pub cores: usize,
}

impl Launch {
    /// A process pinned to as many cores as it has threads, with the system's allocator as it comes.
    fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new("taskset");
        if self.threads < self.cores {
            command.arg("-c").arg(format!("0-{}", self.threads - 1)).arg(program);
        } else {
            command = Command::new(program);
        }
        command.args(arguments);
        for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"] {
            command.env(variable, self.threads.to_string());
        }
        NOT_INHERITED.iter().for_each(|variable| _ = command.env_remove(variable));
        command
    }

    /// The process of one engine, under the system's allocator or another.
    pub fn engine(&self, engine: &str, preload: Option<&Path>, folder: &Path) -> Result<Worker> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/worker.py");
        let mut command = if PYTHON.contains(&engine) {
            let python = self.python.as_deref().with_context(|| format!("{engine} needs --peers PYTHON"))?;
            let mut command = self.command(python, &[script, engine]);
            command.env("BENCH_DEVICE", if self.device.is_some() { "cuda" } else { "cpu" });
            command
        } else {
            let place = self.device.map(|place| place.to_string());
            let device = place.iter().flat_map(|place| ["--device", place]);
            self.command(&env::current_exe()?, &["--worker", engine].into_iter().chain(device).collect::<Vec<_>>())
        };
        if let Some(library) = preload {
            command.env("LD_PRELOAD", library);
        }
        let allocator = preload.map_or(SYSTEM.into(), allocator);
        let complaints = folder.join(format!("{engine}-{allocator}.txt"));
        let mut worker = Worker { engine: engine.into(), allocator, versions: None, command, process: None, complaints };
        worker.start().with_context(|| format!("the worker of {engine}"))?;
        Ok(worker)
    }

    /// The speed of a device, measured by a process of its own.
    pub fn speed(&self, place: Place) -> Result<Speed> {
        let output = self.command(&env::current_exe()?, &["--speed", "--device", &place.to_string()]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}", said.trim().trim_start_matches("error: "));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The speed of memory, measured by a process pinned as the engines are.
    pub fn bandwidth(&self) -> Result<Bandwidth> {
        let threads = self.threads.to_string();
        let output = self.command(&env::current_exe()?, &["--bandwidth", "--threads", &threads]).output()?;
        ensure!(output.status.success(), "the bandwidth probe failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// `libmimalloc.so.2` is mimalloc.
pub fn allocator(library: &Path) -> String {
    let name = library.file_name().unwrap_or_default().to_string_lossy();
    name.trim_start_matches("lib").split('.').next().unwrap_or_default().to_string()
}

/// The process of one engine. One that died is started anew when it is next asked.
pub struct Worker {
    pub engine: String,
    pub allocator: String,
    pub versions: Option<String>,
    command: Command,
    process: Option<Process>,
    /// What it says on stderr, to be quoted if it dies.
    complaints: PathBuf,
}

impl Worker {
    /// Starts the process unless it runs.
    pub fn start(&mut self) -> Result<()> {
        if self.process.is_none() {
            let mut process = Process::start(&mut self.command, self.complaints.clone())?;
            self.versions = process.reply::<Reply>()?.note;
            self.process = Some(process);
        }
        Ok(())
    }

    pub fn ask(&mut self, ask: &Ask) -> Result<Reply> {
        let reply = self.process.as_mut().context("it is not running")?.ask(ask);
        if reply.is_err() {
            self.process = None; // It died, or later replies could belong to earlier questions.
        }
        reply
    }
}
