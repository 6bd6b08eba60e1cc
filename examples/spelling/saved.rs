//! A trained model on disk: `spelling.json` names the file of its weights, so that one rename replaces both.

use std::{
    fs,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{common::save_whole, features::Features, model::Towers};

/// What `spelling.json` holds.
#[derive(Serialize, Deserialize)]
pub struct Saved {
    weights: String,
    dim: usize,
    pub features: Features,
    /// All correct words, in the order of the alphabet.
    pub words: Vec<String>,
}

const FILE: &str = "spelling.json";

/// Writes the weights under a new name, then the file that names them; then those of before go.
pub fn save(folder: &Path, model: &Towers, features: &Features, words: &[String]) -> Result<()> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let weights = format!("weights-{time}.bpk");
    save_whole(&folder.join(&weights), |part| Ok(model.clone().save_file(part)?))?;
    let saved =
        Saved { weights: weights.clone(), dim: model.typos.dims()[1], features: features.clone(), words: words.to_vec() };
    save_whole(&folder.join(FILE), |part| Ok(fs::write(part, serde_json::to_string(&saved)?)?))?;
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let digits = name.strip_prefix("weights-").and_then(|rest| rest.strip_suffix(".bpk"));
        if digits.is_some_and(|digits| digits.parse::<u128>().is_ok()) && name != weights {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

pub fn load(folder: &Path, device: &Device) -> Result<(Towers, Saved)> {
    let file = folder.join(FILE);
    let text = fs::read_to_string(&file)
        .with_context(|| format!("cannot read a model from {}; train one: cargo run --example spelling", file.display()))?;
    let saved: Saved = serde_json::from_str(&text).with_context(|| format!("cannot read {}", file.display()))?;
    let weights = folder.join(&saved.weights);
    let model = Towers::new(&saved.features, saved.dim, device)
        .try_load_file(&weights)
        .with_context(|| format!("cannot load {}", weights.display()))?;
    Ok((model, saved))
}
