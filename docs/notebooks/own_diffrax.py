# %% [markdown]
# # own_diffrax

# %%
print(1)
