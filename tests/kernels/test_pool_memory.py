"""Memory of leases: blocks, views of them, what is given back, and what is refused."""

import os

import numpy as np
import pytest

from minerua.errors import AllocationError, CoreUnavailable, KernelError, PoolError
from minerua.kernels import cuda
from minerua.kernels.pool import ResourcePool

MEBI = 1 << 20


def test_blocks_are_memory_that_numpy_shares(pool):
    with pool.acquire({"host_bytes": MEBI}) as lease:
        block = lease.allocate(4096, alignment=4096)
        array = np.frombuffer(block, np.float32)
        array[:] = 7.0
        assert np.frombuffer(block, np.float32).sum() == 7.0 * 1024
        assert array.ctypes.data == block.address
        assert block.address % 4096 == 0
        assert (block.nbytes, block.resource, block.freed) == (4096, "host_bytes", False)
        assert repr(block) == "<Block of 4096 bytes of host_bytes>"
        del array
    assert block.freed


def test_a_lease_allocates_what_it_declared_and_no_more(pool):
    with pool.acquire({"host_bytes": 1000, "cpu": 1}, name="frugal") as lease:
        first = lease.allocate(600)
        with pytest.raises(AllocationError, match=r"the lease 'frugal' has 400 left of the 1000") as caught:
            lease.allocate(500)
        assert isinstance(caught.value, MemoryError)
        first.free()
        first.free()
        lease.allocate(1000).free()
        lease.allocate(0).free()
        assert lease.try_extend({"host_bytes": 24})
        del first
        lease.allocate(1024).free()
        with pytest.raises(AllocationError, match="it is no memory: nothing can be allocated of it"):
            lease.allocate(1, "cpu")
        with pytest.raises(KernelError, match="no resource is named 'hots_bytes'; did you mean 'host_bytes'"):
            lease.allocate(1, "hots_bytes")
        for wrong in (-1, 1.5, True):
            with pytest.raises(KernelError, match="bytes cannot be allocated; a whole number is needed"):
                lease.allocate(wrong)
        with pytest.raises(KernelError, match="the alignment is 3; it must be a power of two, at most 2097152"):
            lease.allocate(1, alignment=3)
        with pytest.raises(AllocationError):
            lease.allocate(10**30)
    with pytest.raises(PoolError, match="was released; acquire another one"):
        lease.allocate(1)


def test_a_view_keeps_its_memory_and_the_pool_counts_it_until_it_is_gone(pool):
    with pool.acquire({"host_bytes": MEBI, "cpu": 1}, name="viewed") as lease:
        block = lease.allocate(1000)
        view = np.frombuffer(block, np.uint8)
        view[:] = 3
    assert pool.in_use == {"cpu": 0, "host_bytes": 1000, "tokens": 0}
    assert pool.statistics().live == {"viewed": 1}
    with pool.acquire({"host_bytes": 2000}) as other:
        np.frombuffer(other.allocate(2000), np.uint8)[:] = 9
    assert view.tolist() == [3] * 1000
    with pytest.raises(PoolError, match="this block was freed, or its lease released"):
        _ = block.address
    with pytest.raises(BufferError, match="was freed, or its lease was released"):
        memoryview(block)
    del view
    assert pool.in_use["host_bytes"] == 0


def test_a_freed_block_that_is_viewed_counts_until_the_view_is_gone(pool):
    with pool.acquire({"host_bytes": 1000}) as lease:
        block = lease.allocate(1000)
        view = memoryview(block)
        block.free()
        with pytest.raises(AllocationError):
            lease.allocate(1)
        view[0] = 1
        view.release()
        lease.allocate(1000).free()


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_pages_are_given_back_when_all_is_free():
    pool = ResourcePool({"host_bytes": 256 * MEBI})
    before = resident_bytes()
    with pool.acquire({"host_bytes": 256 * MEBI}) as lease:
        block = lease.allocate(256 * MEBI)
        np.frombuffer(block, np.uint8)[:: os.sysconf("SC_PAGE_SIZE")] = 1
        assert resident_bytes() - before > 200 * MEBI
    assert resident_bytes() - before < 100 * MEBI
    assert pool._memory_snapshot(0)[1:] == (0, 0)


def test_memory_that_the_system_refuses_is_an_allocation_error():
    pool = ResourcePool({"all": 2**62}, memory={"all": "host"})
    refused = pytest.raises(AllocationError, match="the lease has the right to more, but the system says no")
    with pool.acquire({"all": 2**62}) as lease, refused:
        lease.allocate(2**61, "all")
    assert pool.in_use == {"all": 0}


@pytest.mark.skipif(not cuda.absence_reason(), reason="the CUDA half is there")
@pytest.mark.parametrize("resource", ["pinned_bytes", "device:0_bytes"])
def test_without_cuda_pinned_and_device_memory_is_counted_and_cannot_be_allocated(resource):
    pool = ResourcePool({resource: 1000})
    refused = pytest.raises(CoreUnavailable, match=f"blocks of '{resource}' need the CUDA half of the core")
    with pool.acquire({resource: 1000}) as lease, refused:
        lease.allocate(10, resource)
    assert pool.in_use == {resource: 0}


@pytest.mark.gpu
@pytest.mark.parametrize("resource", ["pinned_bytes", "device:0_bytes"])
def test_pinned_and_device_blocks_are_real_memory(resource):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pool = ResourcePool({resource: MEBI})
    with pool.acquire({resource: MEBI}) as lease:
        block = lease.allocate(1000, resource)
        assert block.address
        if resource == "pinned_bytes":
            np.frombuffer(block, np.uint8)[:] = 5
        else:
            with pytest.raises(BufferError, match="device memory, which the host cannot view"):
                memoryview(block)
    assert pool.in_use == {resource: 0}
