//! What a run ran on.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    device::Speed,
    shared::{self, bandwidth::Bandwidth, said},
};

#[derive(Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub caches: Vec<String>,
    pub threads: usize,
    /// Bytes per second, far beyond any cache.
    pub bandwidth: Option<Bandwidth>,
    /// Where Burn's engines compute, if not on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<Speed>,
    pub system: String,
    pub versions: Vec<String>,
    pub commit: String,
    pub date: String,
    pub load_before: String,
    /// Empty while the run goes on.
    pub load_after: String,
}

impl Machine {
    /// To be asked before the workers start, as it says how busy the machine is.
    pub fn new(threads: usize, cores: usize) -> Self {
        let versions =
            vec![said("rustc", &["--version"]), locked("burn"), locked("candle-core"), locked("ndarray"), locked("gemm")];
        Machine {
            cpu: shared::cpu(),
            cores,
            caches: (0..5).filter_map(cache).collect(),
            threads,
            bandwidth: None,
            device: None,
            system: said("uname", &["-sr"]) + ", " + said("ldd", &["--version"]).lines().next().unwrap_or_default(),
            versions,
            commit: shared::commit(),
            date: said("date", &["-u", "+%F"]),
            load_before: shared::load_average(),
            load_after: String::new(),
        }
    }

    /// Adds what a worker says of its libraries.
    pub fn add_versions(&mut self, versions: &str) {
        for version in versions.split("; ") {
            if !self.versions.iter().any(|known| known == version) {
                self.versions.push(version.into());
            }
        }
    }

    /// The better of two measurements.
    pub fn add_bandwidth(&mut self, measured: Bandwidth) {
        self.bandwidth = Some(self.bandwidth.map_or(measured, |known| known.better(measured)));
    }
}

fn cache(index: usize) -> Option<String> {
    let folder = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
    let read = |what| Some(fs::read_to_string(Path::new(&folder).join(what)).ok()?.trim().to_lowercase());
    Some(format!("L{} {} {}", read("level")?, read("type")?, read("size")?.to_uppercase()))
}

/// The version of a crate in the lock file; of several that of the last entry, the newest.
fn locked(name: &str) -> String {
    let lock = include_str!("../../Cargo.lock");
    let start = lock.rfind(&format!("name = \"{name}\"\n")).unwrap_or_default();
    format!("{name} {}", lock[start..].split('"').nth(3).unwrap_or_default())
}
