//! The device under test, and what it can hold.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::prelude::*;
use burn::tensor::DType;

/// The device named by `BURN_DEVICE`.
pub fn device() -> Device {
    named(&variable("BURN_DEVICE"))
}

/// The device that a variable names.
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| "flex".into())
}

/// The backend that computes in the end: of a remote device, the server's.
pub fn backend() -> String {
    let named = variable("BURN_DEVICE");
    if named == "remote" { variable("BURN_SERVER") } else { named }
}

/// A device by its name.
pub fn named(name: &str) -> Device {
    match name {
        #[cfg(feature = "flex")]
        "flex" => Device::flex(),
        #[cfg(feature = "ndarray")]
        #[allow(deprecated)]
        "ndarray" => Device::ndarray(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(0),
        #[cfg(feature = "rocm")]
        "rocm" => Device::rocm(0),
        #[cfg(feature = "cpu")]
        "cpu" => Device::cpu(),
        #[cfg(feature = "tch")]
        "tch" => Device::libtorch(),
        #[cfg(feature = "remote")]
        "remote" => crate::remote::shared(),
        name => panic!("BURN_DEVICE={name} asks for a device this build does not have; add --features {name}"),
    }
}

/// A device's random generator belongs to the whole process: tests that draw from it take turns.
pub fn turn_to_draw() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The float dtypes the device can hold, most precise first. f32 is always among them.
pub fn float_dtypes() -> Vec<DType> {
    supported(&[DType::F64, DType::F32, DType::F16, DType::BF16])
}

/// The integer dtypes the device can hold.
pub fn int_dtypes() -> Vec<DType> {
    use DType::*;
    supported(&[I64, I32, I16, I8, U64, U32, U16, U8])
}

/// The most precise float dtype of the device.
pub fn best_float() -> DType {
    float_dtypes()[0]
}

/// Those of [`float_dtypes`] whose exponential is right: that of f64 is not on wgpu, whose shading language has none.
pub fn float_dtypes_with_exp() -> Vec<DType> {
    let has_exp = |dtype: &DType| {
        let one = burn::tensor::Tensor::<1>::from_data([1.0], (&device(), *dtype));
        (one.exp().into_scalar::<f64>() - std::f64::consts::E).abs() < 0.02
    };
    let right: Vec<DType> = float_dtypes().into_iter().filter(has_exp).collect();
    assert!(is_cubecl() || right == float_dtypes(), "exp is wrong in some of {:?}", float_dtypes());
    right
}

fn supported(dtypes: &[DType]) -> Vec<DType> {
    let device = device();
    let supported: Vec<DType> = dtypes.iter().copied().filter(|&dtype| device.supports_dtype(dtype)).collect();
    assert!(supported.contains(&DType::F32) || supported.contains(&DType::I32), "{device:?} holds {supported:?} only");
    supported
}

/// The highest rank of a tensor on the device.
pub fn max_rank() -> usize {
    if backend() == "ndarray" { 6 } else { usize::MAX }
}

/// Whether integers wrap. On ndarray a sum that leaves the range panics where overflow is checked.
pub fn integers_wrap() -> bool {
    backend() != "ndarray"
}

/// Whether the device computes in IEEE arithmetic with subnormal numbers, infinities and NaN. Shading languages do not promise it.
pub fn is_ieee() -> bool {
    matches!(backend().as_str(), "flex" | "ndarray" | "tch")
}

/// Whether the device is one of CubeCL's.
pub fn is_cubecl() -> bool {
    matches!(backend().as_str(), "wgpu" | "cuda" | "rocm" | "cpu")
}
