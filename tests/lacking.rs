//! Burn has a backend and gradients, and burn-dot has neither: the error names the feature to add. A build of its own, run by name:
//! `cargo test --no-default-features --features burn/flex --test lacking`, or with another backend, and `BURN_DEVICE` for it.

use burn::prelude::*;
use burn::tensor::kind::Numeric;
use burn_dot::{DotConfig, dot};

fn refused<K: Numeric>(config: DotConfig, x: Tensor<2, K>) -> String {
    let out: Result<Tensor<2, K>, _> = config.init().try_forward(x.clone(), x);
    out.expect_err("an error").to_string()
}

#[test]
fn a_feature_that_is_missing_in_burn_dot() {
    if cfg!(feature = "autodiff") {
        panic!("nothing is missing in this build; add --no-default-features --features burn/flex");
    }
    let backend = std::env::var("BURN_DEVICE").unwrap_or_else(|_| "flex".into()); // Also the device that Burn takes by default.
    let feature = match &*backend {
        "wgpu" => "\"wgpu\", \"cuda\", \"rocm\" or \"cpu\", as for burn,".to_string(), // Burn's device does not say which.
        backend => format!("\"{backend}\""),
    };
    for (device, feature) in [(Device::default(), &*feature), (Device::default().autodiff(), "\"autodiff\"")] {
        let floats = Tensor::<2>::ones([2, 3], &device);
        let text = format!(
            "Dot: burn-dot was built without the feature for {device:?}; add {feature} to its features in Cargo.toml; \
             lhs [2, 3], rhs [2, 3]"
        );
        for config in [DotConfig::new(1), DotConfig::new(1).with_normalize(true)] {
            assert_eq!(refused(config, floats.clone()), text);
        }
        assert_eq!(refused(DotConfig::new(1), Tensor::<2, Int>::ones([2, 3], &device)), text);
        let panic = std::panic::catch_unwind(|| dot::<2, 2, 2, _>(floats.clone(), floats, 1)).expect_err("a panic");
        assert_eq!(panic.downcast_ref::<String>(), Some(&text));
    }
}
