//! What a checkpoint holds.

use std::fs;

use anyhow::{Result, ensure};
use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    common::checkpoint::Folder,
    features::Features,
    train::{Epoch, Settings, State},
};

#[derive(Serialize, Deserialize)]
struct Progress {
    settings: Settings,
    curve: Vec<Epoch>,
}

pub fn save(checkpoints: &Folder, state: &State, settings: &Settings) -> Result<()> {
    checkpoints.save(state.curve.len(), |folder| {
        state.model.clone().save_file(folder.join("model.bpk"))?;
        state.optimizer.save(folder.join("optimizer.bpk"))?;
        let progress = Progress { settings: settings.clone(), curve: state.curve.clone() };
        Ok(fs::write(folder.join("progress.json"), serde_json::to_string_pretty(&progress)?)?)
    })
}

/// The last checkpoint, which must be of the same settings.
pub fn load(checkpoints: &Folder, settings: &Settings, features: &Features, device: &Device) -> Result<State> {
    checkpoints.load(|folder| {
        let progress: Progress = serde_json::from_str(&fs::read_to_string(folder.join("progress.json"))?)?;
        ensure!(progress.settings == *settings, "it was made with other settings: {:?}, not {settings:?}", progress.settings);
        let state = State::new(settings, features, device);
        Ok(State {
            model: state.model.try_load_file(folder.join("model.bpk"))?,
            optimizer: state.optimizer.load(folder.join("optimizer.bpk"))?,
            curve: progress.curve,
        })
    })
}
