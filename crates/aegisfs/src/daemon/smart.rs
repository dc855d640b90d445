//! What disks think of themselves, through `smartctl` of smartmontools.

use serde_json::{Value, json};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The program.
const PROGRAM: &str = "smartctl";
/// A disk that does not answer by then has nothing to say.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(10);
/// Attributes of ATA disks: sectors that were replaced, that wait for it, and that could not be read.
const REALLOCATED: u64 = 5;
const PENDING: u64 = 197;
const UNCORRECTABLE: u64 = 198;
/// Warnings of NVMe disks: too little spare, no longer reliable, read-only.
const NVME_FAILING: u64 = 0b1101;

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Smart {
    /// There is none, and why.
    None(String),
    /// What smartctl told.
    Told(Value),
}

/// Asks a disk.
pub(super) fn ask(path: &Path) -> Smart {
    match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_block_device() => {}
        Ok(_) => return Smart::None("it is no disk but an image file".into()),
        Err(error) => return Smart::None(error.to_string()),
    }
    let mut command = Command::new(PROGRAM);
    command.args(["--json=c", "--info", "--health", "--attributes"]).arg(path);
    let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Smart::None("smartctl is not installed".into());
        }
        Err(error) => return Smart::None(format!("{PROGRAM}: {error}")),
    };
    // Its answer is smaller than what a pipe holds, or else it is none.
    let begun = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if begun.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            return Smart::None("the disk did not answer in time".into());
        }
        std::thread::sleep(LOOK);
    }
    let output = child.wait_with_output().map(|output| output.stdout).unwrap_or_default();
    read(&output)
}

/// Understands what smartctl wrote.
fn read(output: &[u8]) -> Smart {
    let Ok(told) = serde_json::from_slice::<Value>(output) else {
        return Smart::None(format!("{PROGRAM} gave no answer that can be read"));
    };
    if told["smart_status"]["passed"].is_boolean() || told["nvme_smart_health_information_log"].is_object() {
        return Smart::Told(told);
    }
    let reason =
        told["smartctl"]["messages"][0]["string"].as_str().unwrap_or("the disk tells nothing of itself");
    Smart::None(reason.to_owned())
}

fn attribute(told: &Value, id: u64) -> Option<u64> {
    let table = told["ata_smart_attributes"]["table"].as_array()?;
    table.iter().find(|one| one["id"] == id)?["raw"]["value"].as_u64()
}

impl Smart {
    /// In a few words: `null` for what the disk does not tell.
    pub(super) fn describe(&self) -> Value {
        let told = match self {
            Self::None(reason) => return json!({ "available": false, "reason": reason }),
            Self::Told(told) => told,
        };
        let nvme = &told["nvme_smart_health_information_log"];
        json!({
            "available": true,
            "passed": told["smart_status"]["passed"],
            "failing": self.failing(),
            "model": told["model_name"],
            "serial": told["serial_number"],
            "temperature_celsius": told["temperature"]["current"],
            "power_on_hours": told["power_on_time"]["hours"],
            "reallocated_sectors": attribute(told, REALLOCATED),
            "pending_sectors": attribute(told, PENDING),
            "uncorrectable_sectors": attribute(told, UNCORRECTABLE),
            "media_errors": nvme["media_errors"],
            "percentage_used": nvme["percentage_used"],
            "available_spare": nvme["available_spare"],
        })
    }

    /// Why the disk is about to fail, if it says so.
    pub(super) fn failing(&self) -> Option<String> {
        let Self::Told(told) = self else { return None };
        if told["smart_status"]["passed"] == false {
            return Some("its own overall health test fails".into());
        }
        let warning = told["nvme_smart_health_information_log"]["critical_warning"].as_u64().unwrap_or(0);
        (warning & NVME_FAILING != 0).then(|| format!("its critical warnings are {warning:#04x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_has_nothing_to_say() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(ask(file.path()).describe()["available"], false);
        assert!(ask(Path::new("/nothing/here")).failing().is_none());
        assert_eq!(read(b"no json"), Smart::None("smartctl gave no answer that can be read".into()));
        let refused = json!({ "smartctl": { "messages": [{ "string": "Unable to detect device type" }] } });
        assert_eq!(read(refused.to_string().as_bytes()), Smart::None("Unable to detect device type".into()));
    }

    #[test]
    fn disks_of_both_kinds_are_understood() {
        let mut told = json!({
            "model_name": "A disk", "serial_number": "X1", "smart_status": { "passed": true },
            "temperature": { "current": 31 }, "power_on_time": { "hours": 1234 },
            "ata_smart_attributes": { "table": [
                { "id": 5, "name": "Reallocated_Sector_Ct", "raw": { "value": 8 } },
                { "id": 197, "name": "Current_Pending_Sector", "raw": { "value": 2 } },
            ] },
        });
        let smart = read(told.to_string().as_bytes());
        let seen = smart.describe();
        assert_eq!((&seen["reallocated_sectors"], &seen["pending_sectors"]), (&json!(8), &json!(2)));
        assert_eq!(
            (&seen["uncorrectable_sectors"], &seen["temperature_celsius"]),
            (&Value::Null, &json!(31))
        );
        assert_eq!((smart.failing(), &seen["available"]), (None, &json!(true)));
        told["smart_status"]["passed"] = false.into();
        assert!(read(told.to_string().as_bytes()).failing().unwrap().contains("overall"));
        let nvme = |warning: u64| {
            let log = json!({ "critical_warning": warning, "media_errors": 7, "percentage_used": 90 });
            read(json!({ "nvme_smart_health_information_log": log }).to_string().as_bytes())
        };
        assert_eq!((nvme(2).failing(), nvme(0).describe()["media_errors"].as_u64()), (None, Some(7)));
        assert!(nvme(4).failing().unwrap().contains("0x04"));
    }
}
