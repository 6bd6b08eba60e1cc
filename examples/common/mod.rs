//! What the examples have in common: devices, files that are written whole, and maps of vectors.

use std::{fs, ops::Range, panic, path::Path};

use anyhow::{Context, Result, bail};
use burn::prelude::*;
use clap::ValueEnum;
use plotters::{
    coord::{Shift, types::RangedCoordf32},
    prelude::*,
};

/// Where to compute.
#[derive(Clone, Copy, ValueEnum)]
pub enum Backend {
    Flex,
    Ndarray,
    Wgpu,
    Cuda,
}

/// Opens a device, or says in a line why it cannot be had.
pub fn open(backend: Backend) -> Result<Device> {
    let name = backend.to_possible_value().expect("no variant is hidden").get_name().to_owned();
    let open: fn() -> Device = match backend {
        #[cfg(feature = "flex")]
        Backend::Flex => Device::flex,
        #[cfg(feature = "ndarray")]
        #[allow(deprecated)] // Deprecated upstream in favour of flex, and still supported here.
        Backend::Ndarray => Device::ndarray,
        #[cfg(feature = "wgpu")]
        Backend::Wgpu => || Device::wgpu(DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        Backend::Cuda => || Device::cuda(0),
        #[allow(unreachable_patterns)] // With every feature on, nothing is left.
        _ => bail!("device {name} is not in this build; add --features {name} to the cargo command"),
    };
    // Burn panics where there is no adapter or driver. Ask for a first number, quietly.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let opened = panic::catch_unwind(|| {
        let device = open();
        let two: f32 = (Tensor::<1>::ones([1], &device) + 1.0).into_scalar();
        (two == 2.0).then_some(device)
    });
    panic::set_hook(hook);
    match opened {
        Ok(Some(device)) => Ok(device),
        Ok(None) => bail!("device {name} cannot add: it gave a wrong answer for 1 + 1"),
        Err(reason) => {
            let reason = reason.downcast_ref::<String>().map(String::as_str).or(reason.downcast_ref::<&str>().copied());
            bail!("device {name} is not available: {}", reason.unwrap_or("no reason given").lines().next().unwrap_or(""))
        }
    }
}

/// Writes a file or folder under another name first, so that a failure leaves what was there before.
pub fn save_whole(file: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let part = match file.extension() {
        Some(extension) => file.with_extension(format!("part.{}", extension.to_string_lossy())),
        None => file.with_extension("part"),
    };
    write(&part).and_then(|()| Ok(fs::rename(&part, file)?)).with_context(|| format!("cannot write {}", file.display()))
}

/// A picture of places in a plane whose axes have no unit.
pub type Map<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf32, RangedCoordf32>>;

/// A map with room for all places.
pub fn map<'a, 'b>(root: &'a DrawingArea<SVGBackend<'b>, Shift>, caption: &str, places: &[[f32; 2]]) -> Result<Map<'a, 'b>> {
    let axis = |axis: usize| range(places.iter().map(move |place| place[axis]));
    let mut chart = ChartBuilder::on(root)
        .caption(caption, ("sans-serif", 24))
        .margin(16)
        .x_label_area_size(36)
        .y_label_area_size(36)
        .build_cartesian_2d(axis(0), axis(1))?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_desc("first component")
        .y_desc("second component")
        .x_labels(0)
        .y_labels(0)
        .draw()?;
    Ok(chart)
}

/// The range of some numbers with a margin.
fn range(numbers: impl Iterator<Item = f32>) -> Range<f32> {
    let (low, high) = numbers.fold((f32::MAX, f32::MIN), |(low, high), x| (low.min(x), high.max(x)));
    let margin = 0.08 * (high - low).max(f32::EPSILON);
    low - margin..high + margin
}
