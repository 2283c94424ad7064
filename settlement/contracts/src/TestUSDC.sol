// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title Play money for test chains: anybody may mint. Never deploy it where money is real.
/// @notice Six decimals, like USDC, so that one base unit is one µUSDC.
contract TestUSDC is ERC20, ERC20Permit {
    /// @notice The most one call may mint: a billion dollars.
    uint256 public constant MINT_MAX = 1e15;

    /// @notice More than MINT_MAX was asked for in one call.
    error MintTooLarge(uint256 amount, uint256 limit);

    constructor() ERC20("compex Test USDC", "tUSDC") ERC20Permit("compex Test USDC") {}

    /// @notice The faucet.
    /// @param to Who receives it.
    /// @param amount Base units, at most MINT_MAX.
    function mint(address to, uint256 amount) external {
        if (amount > MINT_MAX) revert MintTooLarge(amount, MINT_MAX);
        _mint(to, amount);
    }

    function decimals() public pure override returns (uint8) {
        return 6;
    }
}
