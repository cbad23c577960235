//! Stands in for `libz-ng-sys`, whose build needs cmake.
//!
//! `pingora-core` switches on flate2's `zlib-ng` backend. The gate never compresses, so the only effect of that switch
//! would be a C build that a bare machine cannot do. zlib-rs offers the same functions in Rust over the same memory
//! layout; the one difference is that its allocator members are `Option`s of the pointers that flate2 fills in, and
//! `Option` of a function pointer has the layout of the pointer.
#![allow(non_camel_case_types, non_snake_case, missing_docs, clippy::missing_safety_doc)]

use std::ffi::{c_char, c_int, c_void};

pub use libz_rs_sys::*;

pub type alloc_func = extern "C" fn(*mut c_void, u32, u32) -> *mut c_void;
pub type free_func = extern "C" fn(*mut c_void, *mut c_void);

#[repr(C)]
pub struct z_stream {
    pub next_in: *mut u8,
    pub avail_in: u32,
    pub total_in: uLong,
    pub next_out: *mut u8,
    pub avail_out: u32,
    pub total_out: uLong,
    pub msg: *mut c_char,
    pub state: *mut internal_state,
    pub zalloc: alloc_func,
    pub zfree: free_func,
    pub opaque: *mut c_void,
    pub data_type: c_int,
    pub adler: uLong,
    pub reserved: uLong,
}

const _: () = assert!(size_of::<z_stream>() == size_of::<libz_rs_sys::z_stream>());

macro_rules! forward {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {$(
        pub unsafe fn $name(stream: *mut z_stream, $($argument: $kind),*) -> c_int {
            unsafe { libz_rs_sys::$name(stream.cast(), $($argument),*) }
        }
    )*};
}

forward! {
    deflate(flush: c_int);
    deflateEnd();
    deflateReset();
    deflateParams(level: c_int, strategy: c_int);
    deflateSetDictionary(dictionary: *const u8, length: u32);
    deflateInit2_(level: c_int, method: c_int, bits: c_int, memory: c_int, strategy: c_int, version: *const c_char, size: c_int);
    inflate(flush: c_int);
    inflateEnd();
    inflateReset2(bits: c_int);
    inflateSetDictionary(dictionary: *const u8, length: u32);
    inflateInit2_(bits: c_int, version: *const c_char, size: c_int);
}
