//! Models Incus's answers: only the fields that anklume reads.

use serde::Deserialize;

/// The frame around every answer of the API.
#[derive(Debug, Deserialize)]
pub(super) struct ApiEnvelope<T> {
    /// The answer itself; `None` where an operation failed, whatever the status says.
    #[serde(default = "nothing")]
    pub(super) metadata: Option<T>,
    /// The failure, in Incus's words.
    #[serde(default)]
    pub(super) error: String,
}

fn nothing<T>() -> Option<T> {
    None
}

/// The frame around a refusal.
#[derive(Debug, Deserialize)]
pub(super) struct ApiRefusal {
    /// Incus's words.
    #[serde(default)]
    pub(super) error: String,
}

/// An Incus instance.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct MachineRef {
    /// Its name, unique in its project.
    pub(crate) name: String,
    /// Its project.
    #[serde(default = "default_project")]
    pub(crate) project: String,
    /// `Running`, `Stopped`, `Frozen`, …
    #[serde(default)]
    pub(crate) status: String,
}

/// The project that is always there.
fn default_project() -> String {
    "default".to_owned()
}

impl MachineRef {
    /// Returns whether programs can be started in it.
    pub(crate) fn runs(&self) -> bool {
        // `Ready` is what a running machine becomes that said so of itself.
        self.status == "Running" || self.status == "Ready"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_passed_over_and_missing_ones_have_a_meaning() {
        let machine: MachineRef = serde_json::from_str(r#"{"name":"a","later":[1]}"#).unwrap();
        assert_eq!(
            (machine.name.as_str(), machine.project.as_str()),
            ("a", "default")
        );
        assert!(!machine.runs());
    }
}
