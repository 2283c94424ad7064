// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";

/// @title Who may change a role of the vault: nobody at once.
/// @notice OpenZeppelin's time lock, with no administrator beside itself, and a delay above the
/// time that an exit takes: whoever does not like what was proposed has left before it is done.
contract ParameterTimelock is TimelockController {
    /// @notice The vault's EXIT_DELAY and a day to take note.
    uint256 public constant DELAY_MIN = 8 days;

    error DelayTooShort(uint256 delay, uint256 least);

    /// @param delay Seconds from a proposal to its execution.
    /// @param proposers Who may propose and cancel.
    /// @param executors Who may execute what is due; the zero address: anybody.
    constructor(uint256 delay, address[] memory proposers, address[] memory executors)
        TimelockController(delay, proposers, executors, address(0))
    {
        if (delay < DELAY_MIN) revert DelayTooShort(delay, DELAY_MIN);
    }
}
