//! stub
#![allow(missing_docs)]
use crate::domain::model::*;
use serde::{Deserialize, Serialize};
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertStatus(String);
impl AlertStatus {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    pub id: String,
    pub status: AlertStatus,
    pub assigned_to: Option<String>,
    pub classification: DefenderClassification,
    pub determination: DefenderDetermination,
}
