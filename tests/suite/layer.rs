//! `Dot` as a Burn module: part of a model, shown, cloned, saved, loaded and trained with it.

use burn::module::Module;
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::prelude::*;
use burn_dot::{Dot, DotConfig};

use crate::{
    device::{device, turn_to_draw},
    run::{apply, array},
};

#[derive(Module, Debug)]
struct TwoTower {
    user: Linear,
    item: Linear,
    dot: Dot,
}

impl TwoTower {
    fn new(device: &Device) -> Self {
        Self::with(LinearConfig::new(3, 8), device)
    }

    fn with(tower: LinearConfig, device: &Device) -> Self {
        TwoTower { user: tower.init(device), item: tower.init(device), dot: DotConfig::new(1).with_normalize(true).init() }
    }

    fn forward(&self, user: Tensor<2>, item: Tensor<2>) -> Tensor<2> {
        apply(&self.dot, self.user.forward(user), self.item.forward(item))
    }
}

fn inputs(device: &Device) -> (Tensor<2>, Tensor<2>) {
    let x = |phase: f64| crate::run::tensor::<2>(&crate::run::wave(&[16, 3], phase), burn::tensor::DType::F32, device);
    (x(0.1), x(0.5))
}

#[test]
fn a_parent_module_is_saved_and_loaded_with_its_dot() {
    let _turn = turn_to_draw();
    let device = device();
    let model = TwoTower::new(&device);
    let (user, item) = inputs(&device);
    let before = array(&model.forward(user.clone(), item.clone()));

    let folder = std::env::temp_dir().join(format!("burn-dot-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("model.bpk");
    model.save_file(&file).unwrap();
    let empty = TwoTower::with(LinearConfig::new(3, 8).with_initializer(Initializer::Zeros), &device);
    assert_ne!(array(&empty.forward(user.clone(), item.clone())), before, "another initialization gives other scores");
    let loaded = empty.load_file(&file);
    assert_eq!(array(&loaded.forward(user, item)), before);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_record_holds_weights_and_leaves_the_configuration_of_a_dot_alone() {
    let _turn = turn_to_draw();
    let device = device();
    let folder = std::env::temp_dir().join(format!("burn-dot-record-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("model.bpk");
    TwoTower::new(&device).save_file(&file).unwrap();
    let plain = TwoTower { dot: DotConfig::new(1).init(), ..TwoTower::new(&device) };
    assert!(plain.load_file(&file).to_string().contains("dot: Dot {axes: 1, normalize: false}"));
    device.sync().unwrap(); // A remote device reads the file when it sends it.
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_dot_has_no_parameters_and_shows_its_configuration() {
    let dot = DotConfig::new((1, -1)).init();
    assert_eq!(dot.num_params(), 0);
    assert_eq!(dot.to_string(), "Dot {axes: (1, -1), normalize: false}");
    assert_eq!(dot.clone().config(), dot.config());
    let every = DotConfig::new([(1, 2)]).with_normalize(true).with_epsilon(1e-7).with_batch_dims(0).with_broadcast_batch(true);
    let every = every.with_output_dtype(burn::tensor::FloatDType::F32).init();
    assert_eq!(
        every.to_string(),
        "Dot {axes: [(1, 2)], normalize: true, epsilon: 0.0000001, batch_dims: 0, broadcast_batch: true, output_dtype: F32}"
    );
    let integers = DotConfig::new(1).with_output_dtype(burn::tensor::IntDType::I32).init();
    assert_eq!(integers.to_string(), "Dot {axes: 1, normalize: false, output_dtype: I32}");
    assert!(TwoTower::new(&device()).to_string().contains("dot: Dot {axes: 1, normalize: true}"));
}

#[test]
fn a_model_with_a_dot_trains() {
    let _turn = turn_to_draw();
    let device = device().autodiff();
    let mut model = TwoTower::new(&device);
    let (user, item) = inputs(&device);
    let loss = |model: &TwoTower| (model.forward(user.clone(), item.clone()) - 0.5).powf_scalar(2.0).mean();
    let first = loss(&model).into_scalar::<f32>();
    let mut optimizer = SgdConfig::new().init();
    for _ in 0..50 {
        let grads = GradientsParams::from_grads(loss(&model).backward(), &model);
        model = optimizer.step(0.3, model, grads);
    }
    let last = loss(&model).into_scalar::<f32>();
    assert!(last < 0.2 * first, "the loss went from {first} to {last}");
    let valid = model.valid().forward(user.inner(), item.inner());
    assert!(!valid.device().is_autodiff(), "nothing is recorded in validation");
}

#[test]
fn a_dot_moves_between_threads_and_is_shared_by_them() {
    let dot = DotConfig::new(1).with_normalize(true).init();
    let (user, item) = inputs(&device());
    let score = |dot: &Dot, user: Tensor<2>, item: Tensor<2>| array(&apply::<2, 2, 2, _>(dot, user, item));
    let here = score(&dot, user.clone(), item.clone());
    std::thread::scope(|threads| {
        let shared = [0; 2].map(|_| threads.spawn(|| score(&dot, user.clone(), item.clone())));
        for there in shared {
            assert_eq!(there.join().unwrap(), here, "shared");
        }
    });
    let moved = std::thread::spawn(move || (score(&dot, user, item), dot));
    let (there, dot) = moved.join().unwrap();
    assert_eq!(there, here, "moved");
    assert_eq!(dot.to_string(), "Dot {axes: 1, normalize: true}", "and back");
}
