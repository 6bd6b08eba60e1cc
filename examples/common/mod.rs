//! What the examples have in common: devices, servers, files that are written whole, checkpoints, and maps of vectors.

#![allow(dead_code, reason = "no example uses all of it")]

use std::{
    env, fmt, fs,
    ops::Range,
    panic,
    path::Path,
    process::ExitCode,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, anyhow, bail};
use burn::prelude::*;
use clap::ValueEnum;
use plotters::{
    coord::{Shift, types::RangedCoordf32},
    prelude::*,
};

pub mod checkpoint;
mod panics;
pub mod remote;
pub mod traffic;

/// The first panic on any thread. A device fails on one of its own: whoever waits for it only hears that it is gone, and whoever
/// does not may go on with numbers that nobody wrote.
static FIRST_PANIC: Mutex<Option<String>> = Mutex::new(None);

fn first_panic() -> MutexGuard<'static, Option<String>> {
    FIRST_PANIC.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a program. An error ends in a line, and so does a device that fails in the middle, where Burn panics. With `RUST_BACKTRACE` set
/// the panic is printed, too.
pub fn report(run: impl FnOnce() -> Result<()>) -> ExitCode {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            print(panic);
        }
        first_panic().get_or_insert_with(|| panics::in_a_line(panic.payload_as_str().unwrap_or_default()));
    }));
    let result = catch(run).and_then(|result| match first_panic().take() {
        Some(reason) if result.is_ok() => Err(reason),
        _ => Ok(result),
    });
    match result.unwrap_or_else(|reason| Err(anyhow!("{reason}"))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Calls a function; if it panics, the text of the first panic since.
pub fn catch<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    first_panic().take();
    // What was half done is not looked at again.
    panic::catch_unwind(panic::AssertUnwindSafe(run)).map_err(|_| first_panic().take().unwrap_or_default())
}

/// For a program that goes on after a panic on a thread of its own, and ends well.
pub fn forget_panics() {
    first_panic().take();
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Backend {
    Flex,
    Ndarray,
    Wgpu,
    Cuda,
}

/// Where to compute: a backend, and which of its GPUs. In arguments `flex`, `wgpu`, or `wgpu:1` for the second discrete GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    backend: Backend,
    index: Option<usize>,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, index) = text.split_once(':').map_or((text, None), |(name, index)| (name, Some(index)));
        let backend = Backend::from_str(name, true).map_err(|_| "choose flex, ndarray, wgpu or cuda".to_owned())?;
        let index =
            index.map(|index| index.parse().map_err(|_| format!("{index:?} is not the number of a device"))).transpose()?;
        if index.is_some() && matches!(backend, Backend::Flex | Backend::Ndarray) {
            return Err(format!("{name} has one device, without a number"));
        }
        Ok(Place { backend, index })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.backend.to_possible_value().expect("no variant is hidden").get_name())?;
        self.index.map_or(Ok(()), |index| write!(f, ":{index}"))
    }
}

/// Opens a device, or says in a line why it cannot be had. Within [`report`].
pub fn open(place: Place) -> Result<Device> {
    let device = move || -> Option<Device> {
        Some(match place.backend {
            #[cfg(feature = "flex")]
            Backend::Flex => Device::flex(),
            #[cfg(feature = "ndarray")]
            #[allow(deprecated)] // Deprecated upstream in favour of flex, and still supported here.
            Backend::Ndarray => Device::ndarray(),
            #[cfg(feature = "wgpu")]
            Backend::Wgpu => Device::wgpu(place.index.map_or(DeviceKind::DefaultDevice, DeviceKind::DiscreteGpu)),
            #[cfg(feature = "cuda")]
            Backend::Cuda => Device::cuda(place.index.unwrap_or(0)),
            #[allow(unreachable_patterns)] // With every feature on, nothing is left.
            _ => return None,
        })
    };
    // Burn panics where there is no adapter or driver. Ask for a first number.
    let opened = catch(|| {
        device().map(|device| {
            let two: f32 = (Tensor::<1>::ones([1], &device) + 1.0).into_scalar();
            (two == 2.0).then_some(device)
        })
    });
    match opened {
        Ok(Some(Some(device))) => Ok(device),
        Ok(Some(None)) => bail!("device {place} cannot add: it gave a wrong answer for 1 + 1"),
        Ok(None) => {
            let name = Place { index: None, ..place };
            bail!("device {name} is not in this build; add --features {name} to the cargo command")
        }
        Err(reason) => bail!("device {place} is not available: {}", reason.trim_start_matches("a panic: ")),
    }
}

/// Writes a file or folder under another name first, so that a failure leaves what was there before.
pub fn save_whole(file: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let part = match file.extension() {
        Some(extension) => file.with_extension(format!("part.{}", extension.to_string_lossy())),
        None => file.with_extension("part"),
    };
    let written = write(&part).and_then(|()| {
        if part.is_file() {
            // On the disk before it takes the name: what loses its power just then must not find an empty file.
            fs::OpenOptions::new().append(true).open(&part)?.sync_all()?;
        }
        Ok(fs::rename(&part, file)?)
    });
    if written.is_err() {
        let _ = if part.is_dir() { fs::remove_dir_all(&part) } else { fs::remove_file(&part) };
    }
    written.with_context(|| format!("cannot write {}", file.display()))
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
