//! Runs models that Keras trained: layers, weights and `Dot` in Burn, and their predictions beside Keras'.
//!
//! ```text
//! model.keras → examples/keras/export.py → model.json          what the layers are      → burn_dot::dots_of, graph.rs
//!                                          model.safetensors   weights, and predictions → burn_store::SafetensorsStore, model.rs
//! ```
//!
//! Functional and Sequential models, also within each other, of the layers Dense, Embedding, Flatten, Reshape, Activation, Dropout and
//! Dot; any other is refused by name. Without arguments it runs the models in `examples/keras/models/`.
//!
//! ```sh
//! cargo run --example from_keras
//! python examples/keras/export.py model.keras && cargo run --example from_keras -- model.json
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use burn::prelude::*;
use clap::Parser;

#[path = "../common/mod.rs"]
mod common;
mod graph;
mod model;

use common::{Place, open, report};
use graph::{Graph, Operation, Step};
use model::{Exported, difference};

/// Run models exported from Keras, and compare their predictions with Keras'.
#[derive(Parser)]
struct Args {
    /// FILE.json or FILE.safetensors, written by examples/keras/export.py; both are read [default: all in examples/keras/models]
    files: Vec<PathBuf>,
    /// Where to compute: flex, ndarray, wgpu, cuda, or a numbered GPU (cuda:1). All but flex need the cargo feature of that name
    #[arg(long, default_value = "flex")]
    device: Place,
    /// How far a prediction may be from Keras'
    #[arg(long, default_value_t = 1e-6)]
    tolerance: f64,
}

const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/keras/models");

fn main() -> ExitCode {
    let args = Args::parse();
    report(|| run(&args))
}

fn run(args: &Args) -> Result<()> {
    let files = if args.files.is_empty() { all_in(Path::new(MODELS))? } else { args.files.clone() };
    let device = open(args.device)?;
    for file in &files {
        let exported = Exported::read(file, &device)?;
        println!("{}, of Keras {}", file.display(), exported.keras_version);
        print_steps(&exported.graph);
        let predictions = exported.predict(&device).with_context(|| format!("cannot run {}", file.display()))?;
        for (ours, theirs) in predictions.iter().zip(&exported.predictions) {
            let far = difference(ours, theirs).with_context(|| file.display().to_string())?;
            println!("  predictions {} here, {} by Keras, at most {far:.1e} apart", first(ours), first(theirs));
            ensure!(
                far <= args.tolerance,
                "{} predicts otherwise than Keras: {far:e} apart, allowed {:e}",
                file.display(),
                args.tolerance
            );
        }
    }
    Ok(())
}

/// Every exported model in a folder.
fn all_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>();
    let mut files = read().with_context(|| format!("cannot read {}", folder.display()))?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    Ok(files)
}

fn print_steps(graph: &Graph) {
    for Step { layer, operation, shape, .. } in &graph.steps {
        let operation = match operation {
            Operation::Input => "Input".to_string(),
            Operation::Dense(_, activation) => format!("Dense, {activation:?}"),
            Operation::Embedding(_) => "Embedding".to_string(),
            Operation::Activation(activation) => format!("{activation:?}"),
            Operation::Reshape(sizes) => format!("Reshape {sizes:?}"),
            Operation::Dot(dot) => dot.to_string(),
        };
        let sizes = shape.iter().enumerate().map(|(axis, size)| match size {
            Some(size) => size.to_string(),
            None if axis == 0 => "batch".into(),
            None => "?".into(),
        });
        let sizes: Vec<String> = sizes.collect();
        println!("  {layer:<16} {operation} → ({})", sizes.join(", "));
    }
}

/// The first numbers of some.
fn first(data: &TensorData) -> String {
    let numbers: Vec<String> = data.iter::<f32>().take(3).map(|number| format!("{number:.4}")).collect();
    format!("[{}, …]", numbers.join(", "))
}
