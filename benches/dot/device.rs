//! How fast a device is, by Burn's own operations on it: what its cells are held against.

use std::{process::Command, time::Instant};

use anyhow::{Context, Result};
use burn::{prelude::*, tensor::DType};
use serde::{Deserialize, Serialize};

use crate::{
    cells::{Case, Dtype},
    worker::Pass,
};

/// Best of several.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Speed {
    /// What the driver calls it.
    pub name: String,
    /// Bytes per second that are read and written by `x + 1`.
    pub copy: f64,
    /// Operations per second of a product of two square matrices, where the device has the dtype.
    pub matmul: Vec<(Dtype, f64)>,
}

const TIMES: usize = 7;
/// Elements of the array that is copied: 64 MiB of f32.
const COPIED: usize = 1 << 24;
/// Rows and columns of the matrices: 17 billion operations.
const SIZE: usize = 2048;

impl Speed {
    pub fn measure(device: &Device) -> Result<Self> {
        let x = Tensor::<1>::zeros([COPIED], (device, DType::F32));
        let copy = 2.0 * (COPIED * size_of::<f32>()) as f64 / best(device, || x.clone() + 1.0)?;
        let mut matmul = Vec::new();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            if device.supports_dtype(dtype.burn()) {
                let x = Tensor::<2>::ones([SIZE, SIZE], (device, dtype.burn()));
                let seconds = best(device, || x.clone().matmul(x.clone()))?;
                matmul.push((dtype, 2.0 * (SIZE as f64).powi(3) / seconds));
            }
        }
        Ok(Speed { name: name(), copy, matmul })
    }

    pub fn better(self, other: Self) -> Self {
        let matmul = self.matmul.into_iter().map(|(dtype, speed)| {
            let others = other.matmul.iter().filter(|(of, _)| *of == dtype).map(|&(_, speed)| speed);
            (dtype, others.fold(speed, f64::max))
        });
        Speed { name: self.name, copy: self.copy.max(other.copy), matmul: matmul.collect() }
    }

    /// The microseconds that a pass takes at least: to move its bytes, or to multiply, whichever is longer.
    pub fn least_us(&self, case: &Case, pass: Pass) -> Option<f64> {
        let (_, matmul) = self.matmul.iter().find(|(dtype, _)| *dtype == case.dtype)?;
        Some(1e6 * (case.bytes_moved(pass) as f64 / self.copy).max(case.operations(pass) as f64 / matmul))
    }
}

/// The least seconds of an operation, after one that is not counted, in which it may be compiled or tuned.
fn best<const D: usize>(device: &Device, operation: impl Fn() -> Tensor<D>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..=TIMES {
        let start = Instant::now();
        let result = operation(); // Held: fusion does not write what nobody can read.
        device.sync().context("the device failed")?;
        drop(result);
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// GPU and driver, by the tools that come with drivers.
fn name() -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let nvidia =
        || Some(said("nvidia-smi", &["--query-gpu=name,driver_version", "--format=csv,noheader"])?.lines().next()?.into());
    let vulkan = || {
        let summary = said("vulkaninfo", &["--summary"])?;
        let value =
            |key: &str| summary.lines().find(|line| line.trim().starts_with(key))?.split("= ").nth(1).map(str::to_owned);
        Some(format!("{}, {}", value("deviceName")?, value("driverInfo")?))
    };
    nvidia().or_else(vulkan).unwrap_or_else(|| "no tool here says which".into())
}
