//! A fake libcuda of its own for each test, so that faults and counts are never shared.
//! It must never be built more than once in a test process.

use gpu_snapshot::cuda::CudaDevice;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub struct Fake {
    directory: tempfile::TempDir,
    library: PathBuf,
}

/// The compiled library's bytes.
fn compiled() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda/fake_cuda.c");
        let library = directory.path().join("fake.so");
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .args([&library, &source])
            .args(["-ldl", "-lpthread"])
            .output()
            .expect("a C compiler named cc");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        std::fs::read(library).unwrap()
    })
}

impl Fake {
    pub fn new(faults: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let library = directory.path().join("libcuda.so.1");
        std::fs::write(&library, compiled()).unwrap();
        let fake = Self { directory, library };
        fake.set_faults(faults);
        fake
    }

    pub fn path(&self) -> &Path {
        &self.library
    }

    pub fn set_faults(&self, faults: &str) {
        std::fs::write(self.directory.path().join("libcuda.so.1.faults"), faults).unwrap();
    }

    pub fn open(&self) -> CudaDevice {
        CudaDevice::open_with(&self.library, 1).unwrap()
    }

    /// What the fake driver holds or was last told.
    pub fn state(&self, name: &str) -> i64 {
        let text = std::fs::read_to_string(self.directory.path().join("libcuda.so.1.state"));
        let text = text.unwrap();
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let value = lines.find(|(key, _)| *key == name).map(|(_, value)| value);
        value
            .unwrap_or_else(|| panic!("no {name} in {text}"))
            .parse()
            .unwrap()
    }
}
