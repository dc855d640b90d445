#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    aegisfs_fuzz::policy(bytes);
});
