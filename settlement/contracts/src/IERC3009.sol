// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.0;

/// @title Transfers that their sender has signed (EIP-3009), as far as the vault takes them.
/// @dev With the signature as bytes, as USDC has it since version 2.2.
interface IERC3009 {
    /// @notice Only the recipient may call it, so nobody can pass the transfer off as another's.
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;
}
